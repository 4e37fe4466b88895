"""Real servers for tests: each on loopback, on a port of its own, gone when the test is."""
