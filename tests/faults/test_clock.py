"""The clock jumps, under load: forward costs leases, back costs time, and nothing is lost."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from random import Random

import pytest

from tests.faults.faults import RECOVERY, jump_ahead, jump_back
from tests.faults.recipients import FailingReceiver, Habits
from tests.faults.site import LEASE, Site, Size


@pytest.mark.timeout(300)
@pytest.mark.parametrize("size", [Size.EMBEDDED, Size.POSTGRESQL])
def test_a_clock_that_jumps_loses_nothing(tmp_path: Path, size: Size, chance: Random) -> None:
    # Something is always in flight for longer than it takes to see that a lease has run out.
    receivers = [
        partial(FailingReceiver, habits=Habits(fails_every=7, seconds=0.05)),
        partial(FailingReceiver, habits=Habits(seconds=RECOVERY)),
    ]
    with Site(tmp_path, size, chance, lease=LEASE, receivers=receivers) as site:
        with site.build_load(publishers=1, professionals=0, pause=0.2) as callers:
            site.suffer(jump_ahead, jump_back, jump_ahead)
        account = site.settle(callers)
    assert account.holds(), account
    assert account.interrupted > 0
    assert callers.repeated == callers.unavailable == 0
