"""`carehook bench`: what this machine can do, always beside the ceiling measured in the same run."""
