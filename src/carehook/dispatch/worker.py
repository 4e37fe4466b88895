"""The loop: claim what is due, deliver it, record what became of it.

Laws:
- An endpoint has at most `endpoint_concurrency` requests in flight and as many claimed ahead; the rest of its backlog
  stays in the store, where it holds up nobody.
- A result is recorded in a batch with others, and counts only under the lease it was claimed with.
- Stopping claims nothing more. What was claimed and not begun is given back; requests in flight may end, and those that
  do not in time are recorded as interrupted.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import structlog

from carehook.batching import Batcher
from carehook.clock import Clock
from carehook.dispatch.delivery import Deliverer
from carehook.ledger.port import Queue
from carehook.ledger.records import ClaimedDelivery, FinishedAttempt

LEASE: Final = timedelta(seconds=45)
"""For how long a claimed delivery is ours: a round of requests that all take the whole time limit, then our own."""

POLL: Final = timedelta(seconds=0.5)
"""How long what another process made due, or what falls due with time, may go unseen."""

DRAIN: Final = timedelta(seconds=20)
"""How long requests in flight are waited for at a stop: longer than any of them may take."""

LOST_LEASES_EVERY: Final = timedelta(seconds=5)

_CLAIM_AT_MOST: Final = 500
_PAUSE_AFTER_ERROR: Final = 1.0

_log = structlog.get_logger("carehook.worker")


@dataclass(frozen=True, slots=True)
class Limits:
    """Requests in flight at most, in all and to one endpoint, and the lease that they run under."""

    concurrency: int
    endpoint_concurrency: int
    lease: timedelta = LEASE
    request_time: timedelta = timedelta(seconds=15)


class Worker:
    """Delivers what is due until it is stopped."""

    def __init__(self, queue: Queue, deliverer: Deliverer, limits: Limits, clock: Clock) -> None:
        self._queue = queue
        self._deliverer = deliverer
        self._limits = limits
        self._clock = clock
        self._recorder: Batcher[FinishedAttempt, bool] = Batcher(self._record, _CLAIM_AT_MOST)
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: Counter[str] = Counter()
        self._lanes: dict[str, asyncio.Semaphore] = {}
        self._in_flight = asyncio.Semaphore(limits.concurrency)
        self._not_begun: dict[str, ClaimedDelivery] = {}
        self._room = asyncio.Event()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Work until `stop` is called, then drain. An error of the store is logged and waited out."""
        recovering = asyncio.create_task(self._recover_lost_leases())
        try:
            while not self._stopping.is_set():
                try:
                    await self._turn()
                except Exception:
                    _log.exception("claim_failed")
                    await self._pause(_PAUSE_AFTER_ERROR)
        finally:
            recovering.cancel()
            await self._drain()

    def stop(self) -> None:
        """Claim nothing more, and let `run` return when all is settled."""
        self._stopping.set()
        self._room.set()
        self._queue.wake()

    async def _turn(self) -> None:
        room = min(_CLAIM_AT_MOST, self._count_room())
        if room <= 0:
            self._room.clear()
            await self._room.wait()
            return
        claimed = await self._queue.claim(
            room,
            per_endpoint=self._limits.endpoint_concurrency,
            passing_over=self._list_saturated(),
            now=self._clock(),
            lease=self._limits.lease,
        )
        for delivery in claimed:
            self._start(delivery)
        if not claimed:
            await self._queue.wait(at_most=POLL)

    def _count_room(self) -> int:
        return 2 * self._limits.concurrency - self._held.total()

    def _list_saturated(self) -> list[str]:
        return [endpoint for endpoint, held in self._held.items() if held > self._limits.endpoint_concurrency]

    def _start(self, delivery: ClaimedDelivery) -> None:
        endpoint_id = delivery.endpoint.id
        self._held[endpoint_id] += 1
        self._lanes.setdefault(endpoint_id, asyncio.Semaphore(self._limits.endpoint_concurrency))
        self._not_begun[delivery.id] = delivery
        task = asyncio.create_task(self._process(delivery))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _process(self, delivery: ClaimedDelivery) -> None:
        endpoint_id = delivery.endpoint.id
        try:
            async with self._lanes[endpoint_id], self._in_flight:
                finished = await self._attempt(delivery) if self._may_begin(delivery) else None
        finally:
            self._release(endpoint_id)
        if finished is not None:
            await self._settle(finished)
        elif not self._stopping.is_set():
            del self._not_begun[delivery.id]
            await self._queue.give_back([delivery])

    def _may_begin(self, delivery: ClaimedDelivery) -> bool:
        # One that waited so long behind others that its result might come too late to count is begun anew.
        in_time = self._clock() + self._limits.request_time < delivery.lease_until
        return in_time and not self._stopping.is_set()

    async def _attempt(self, delivery: ClaimedDelivery) -> FinishedAttempt:
        del self._not_begun[delivery.id]
        started_at = self._clock()
        try:
            return await self._deliverer.deliver_one(delivery)
        except asyncio.CancelledError:
            return self._deliverer.interrupt(delivery, started_at)

    async def _settle(self, finished: FinishedAttempt) -> None:
        try:
            if not await self._recorder.submit(finished):
                _log.warning("result_came_after_its_lease", delivery_id=finished.delivery_id)
        except Exception:
            # The lease runs out, and the attempt is recorded as interrupted.
            _log.exception("result_not_recorded", delivery_id=finished.delivery_id)

    def _release(self, endpoint_id: str) -> None:
        self._held[endpoint_id] -= 1
        if self._held[endpoint_id] == self._limits.endpoint_concurrency:
            # It was passed over until now, though it may have more that is due.
            self._queue.wake()
        if not self._held[endpoint_id]:
            del self._held[endpoint_id], self._lanes[endpoint_id]
        self._room.set()

    async def _record(self, finished: Sequence[FinishedAttempt]) -> Sequence[bool]:
        return await self._queue.finish(finished, self._clock())

    async def _recover_lost_leases(self) -> None:
        while True:
            try:
                if lost := await self._queue.recover_lost(self._clock()):
                    _log.warning("leases_lost", deliveries=lost)
            except Exception:
                _log.exception("lost_leases_not_recovered")
            await asyncio.sleep(LOST_LEASES_EVERY.total_seconds())

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

    async def _drain(self) -> None:
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=DRAIN.total_seconds())
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._queue.give_back(list(self._not_begun.values()))
        await self._recorder.close()
