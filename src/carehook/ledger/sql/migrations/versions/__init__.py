"""The migrations, one file each, named by their number."""
