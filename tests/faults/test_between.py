"""Killed between two transactions: what the first of them began is finished by others, and nothing stays behind."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Final

import pytest

from tests.faults.faults import kill_before
from tests.faults.gates import GATES
from tests.faults.site import Site, Size

_GATES: Final = 3
"""Of all, in each run."""


@pytest.mark.timeout(300)
def test_whoever_is_killed_before_a_statement_leaves_nothing_undone(tmp_path: Path, chance: Random) -> None:
    with Site(tmp_path, Size.POSTGRESQL, chance) as site:
        with site.build_load(publishers=2) as callers:
            for gate in chance.sample(list(GATES), _GATES):
                site.wait_for_progress()
                kill_before(site, gate)
            site.wait_for_progress()
        account = site.settle(callers)
    assert account.holds(), account
    assert account.interrupted > 0
