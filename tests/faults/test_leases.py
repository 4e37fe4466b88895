"""A worker that was away for longer than its leases: what it did counts no more, and what it held is done by others."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Final

import pytest

from tests.faults.faults import freeze_a_worker
from tests.faults.site import Site, Size

_LATE: Final = "result_came_after_its_lease"


@pytest.mark.timeout(200)
def test_results_of_a_worker_that_stood_still_past_its_leases_do_not_count(tmp_path: Path, chance: Random) -> None:
    """SIGSTOP, while another worker works; then SIGCONT."""
    with Site(tmp_path, Size.POSTGRESQL, chance) as site:
        with site.build_load() as callers:
            site.suffer(freeze_a_worker)
        account = site.settle(callers)
        late = sum(worker.count_in_log(_LATE) for worker in site.workers)
    assert account.holds(), account
    assert account.interrupted >= late > 0
    assert callers.repeated == callers.unavailable == 0
