"""Workers that outlive their leases: what comes of it then counts no more, and what they held is done by others."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import pytest

from tests.faults.faults import freeze_a_worker
from tests.faults.processes import wait_until
from tests.faults.recipients import FailingReceiver, Habits
from tests.faults.site import RECEIVERS, Site, Size
from tests.servers.hosts import Host

_LATE: Final = ("event", "result_came_after_its_lease")
_HELD: Final = 3


class LateReceiver(FailingReceiver):
    """Takes everything, but answers the first request of each of the first few events only when it is told to."""

    def __init__(self, host: Host) -> None:
        super().__init__(host, Habits())
        self.held: set[str] = set()
        self._released = asyncio.Event()

    async def wait_before_answering(self, event_id: str) -> None:
        """See `FailingReceiver`."""
        if len(self.held) < _HELD and event_id not in self.held:
            self.held.add(event_id)
            await self._released.wait()

    def have_come_again(self) -> bool:
        """Whether all that is held has come a second time."""
        arrived = Counter(each.event_id for each in list(self.arrivals))
        return len(self.held) == _HELD and all(arrived[event_id] > 1 for event_id in self.held)

    def release(self) -> None:
        """Answer what is held."""
        self._loop.call_soon_threadsafe(self._released.set)


@pytest.mark.timeout(300)
def test_results_of_a_worker_that_stood_still_past_its_leases_do_not_count(tmp_path: Path, chance: Random) -> None:
    """SIGSTOP, while another worker works; then SIGCONT."""
    # Whichever stands still has something in flight.
    slow = partial(FailingReceiver, habits=Habits(seconds=1.0))
    receivers: list[Callable[[Host], FailingReceiver]] = [*RECEIVERS, slow]
    with Site(tmp_path, Size.POSTGRESQL, chance, receivers=receivers) as site:
        with site.build_load() as callers:
            site.suffer(freeze_a_worker)
        account = site.settle(callers)
        late = sum(worker.count_in_log(*_LATE) for worker in site.workers)
    assert account.holds(), account
    assert account.interrupted >= late > 0
    assert callers.repeated == callers.unavailable == 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("size", [Size.EMBEDDED, Size.JETSTREAM])
def test_an_answer_that_comes_after_the_lease_has_ended_does_not_count(
    tmp_path: Path, size: Size, chance: Random
) -> None:
    """Its event is sent again, which the interrupted attempt explains."""
    with Site(tmp_path, size, chance, receivers=[LateReceiver, *RECEIVERS]) as site:
        late = site.receivers[0]
        assert isinstance(late, LateReceiver)
        with site.build_load(publishers=1, operators=None) as callers:
            wait_until(late.have_come_again, "second request of what is held")
            late.release()
            wait_until(lambda: sum(each.count_in_log(*_LATE) for each in site.delivering), "late result")
        account = site.settle(callers)
    assert account.holds(), account
    assert account.repeated >= _HELD
