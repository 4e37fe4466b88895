"""`python -m carehook.cli` is `carehook`."""

from carehook.cli import main

main()
