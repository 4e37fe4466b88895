"""`kill -9` at random moments under load: what was accepted is delivered, and nothing else is."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.faults.faults import kill_a_worker, kill_all_after_a_change, kill_the_api
from tests.faults.site import Site, Size


@pytest.mark.timeout(300)
@pytest.mark.parametrize("size", Size)
def test_processes_that_are_killed_lose_nothing_that_was_accepted(tmp_path: Path, size: Size, chance: Random) -> None:
    with Site(tmp_path, size, chance) as site:
        with site.build_load() as callers:
            site.suffer(kill_the_api, kill_a_worker, kill_all_after_a_change)
        account = site.settle(callers)
    assert account.holds(), account
    # Or no kill met anything, and this has proved nothing.
    assert callers.repeated > 0
    assert account.interrupted > 0
    assert account.accepted > 50
