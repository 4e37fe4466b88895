"""The store's disk is full, under load: callers are told to repeat, and all goes on when there is room."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.faults.faults import fill_the_disk
from tests.faults.site import Site, Size
from tests.servers.namespaces import Network


@pytest.mark.timeout(300)
@pytest.mark.parametrize("size", [Size.EMBEDDED, Size.POSTGRESQL])
def test_a_full_disk_refuses_events_and_loses_none(
    tmp_path: Path, size: Size, chance: Random, network: Network
) -> None:
    with Site(tmp_path, size, chance, network=network) as site:
        with site.build_load() as callers:
            site.suffer(fill_the_disk, fill_the_disk)
            assert all(process.is_running() for process in site.processes)
        account = site.settle(callers)
    assert account.holds(), account
    assert callers.repeated == 0
    assert callers.unavailable > 0
