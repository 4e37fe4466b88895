"""Connections to a store, and what is told to its driver."""
