"""PostgreSQL is killed and restarted under load: callers are told to repeat, and nothing that was accepted is lost."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.faults.faults import (
    kill_a_process_of_the_database,
    kill_the_database,
    restart_the_database,
    restart_the_database_at_once,
)
from tests.faults.site import Site, Size


@pytest.mark.timeout(300)
def test_a_database_that_goes_and_comes_back_costs_time_alone(tmp_path: Path, chance: Random) -> None:
    """No process of Carehook is told or restarted: each finds its way back."""
    with Site(tmp_path, Size.POSTGRESQL, chance) as site:
        with site.build_load() as callers:
            site.suffer(
                restart_the_database, kill_the_database, restart_the_database_at_once, kill_a_process_of_the_database
            )
            assert all(process.is_running() for process in site.processes)
        account = site.settle(callers)
    assert account.holds(), account
    assert callers.repeated == 0
    assert callers.unavailable > 0
    assert account.accepted > 50
