"""The tests: read tests/walkthrough first."""
