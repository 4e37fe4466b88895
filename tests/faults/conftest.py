"""Chance, and networks of a test's own."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.servers.namespaces import Network


@pytest.fixture
def chance() -> random.Random:
    """Chance that can be had again: the seed is printed, and is shown where a test fails."""
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture
def network() -> Iterator[Network]:
    """A network without hosts."""
    with Network() as network:
        yield network
