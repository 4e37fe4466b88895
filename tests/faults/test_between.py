"""Killed between two transactions: what the first of them began is finished by others, and nothing stays behind."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.faults.faults import kill_all_after_a_change, kill_before
from tests.faults.gates import GATES
from tests.faults.site import Site, Size


@pytest.mark.timeout(300)
def test_whoever_is_killed_before_a_statement_leaves_nothing_undone(tmp_path: Path, chance: Random) -> None:
    with Site(tmp_path, Size.POSTGRESQL, chance) as site:
        with site.build_load(publishers=2) as callers:
            for gate in chance.sample(list(GATES), len(GATES)):
                site.wait_for_progress()
                kill_before(site, gate)
            site.wait_for_progress()
        account = site.settle(callers)
    assert account.holds(), account
    assert account.interrupted > 0


@pytest.mark.timeout(300)
def test_a_change_that_was_answered_is_carried_out_whoever_dies(tmp_path: Path, chance: Random) -> None:
    with Site(tmp_path, Size.EMBEDDED, chance) as site:
        with site.build_load() as callers:
            site.suffer(kill_all_after_a_change, kill_all_after_a_change, kill_all_after_a_change)
        account = site.settle(callers)
    assert account.holds(), account
    assert account.silences > 0
