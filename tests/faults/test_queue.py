"""NATS dies under load, node by node and all of it: that costs time, and nothing else."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.faults.faults import kill_a_node, lose_all_nodes_for_a_minute
from tests.faults.site import LEASE, Site, Size


@pytest.mark.timeout(300)
def test_a_queue_that_dies_and_comes_back_loses_nothing_and_sends_nothing_twice(tmp_path: Path, chance: Random) -> None:
    """No process of Carehook is told or restarted, and callers notice nothing."""
    with Site(tmp_path, Size.JETSTREAM, chance, lease=LEASE) as site:
        with site.build_load() as callers:
            site.suffer(kill_a_node, lose_all_nodes_for_a_minute)
            assert all(process.is_running() for process in site.processes)
        account = site.settle(callers)
    assert account.holds(), account
    assert account.repeated == account.interrupted == 0
    assert callers.repeated == callers.unavailable == 0
    assert account.accepted > 50
