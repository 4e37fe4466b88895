"""The loop: claim what is due, deliver it, record what became of it.

Laws:
- An endpoint has at most `endpoint_concurrency` requests in flight and as many claimed ahead; the rest of its backlog
  stays in the store, where it holds up nobody.
- A result is recorded in a batch with others, and counts only under the lease it was claimed with. A store that cannot
  record now is asked again for as long as the lease holds.
- Stopping claims nothing more. What was claimed and not begun is given back at once; requests in flight may end, and
  those that do not in time are recorded as interrupted.

Leases and due times go by the wall clock. Where it jumps forward, what is in flight may be sent twice; where it jumps
back, retries and the leases of a worker that died last longer by as much. Nothing is lost either way.
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
from carehook.dispatch.delivery import ATTEMPT_LIMIT, Deliverer
from carehook.ledger.port import LedgerUnavailable, Queue
from carehook.ledger.records import ClaimedDelivery, FinishedAttempt

LEASE: Final = timedelta(seconds=45)
"""For how long a claimed delivery is ours: a round of attempts that all take the whole time limit, then our own."""

POLL: Final = timedelta(seconds=0.5)
"""How long what another process made due, or what falls due with time, may go unseen."""

DRAIN: Final = timedelta(seconds=25)
"""How long requests in flight are waited for at a stop: longer than any attempt may take."""

LOST_LEASES_EVERY: Final = timedelta(seconds=5)

_CLAIM_AT_MOST: Final = 500
_PAUSE_AFTER_ERROR: Final = timedelta(seconds=1)

_log = structlog.get_logger("carehook.worker")

_Lease = tuple[str, int]
"""A delivery's id and its lease's token: a delivery may be claimed anew while an older claim of it still waits."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Requests in flight at most, in all and to one endpoint, and the lease that they run under."""

    concurrency: int
    endpoint_concurrency: int
    lease: timedelta = LEASE
    attempt: timedelta = ATTEMPT_LIMIT
    drain: timedelta = DRAIN


class Worker:
    """Delivers what is due until it is stopped."""

    def __init__(self, queue: Queue, deliverer: Deliverer, limits: Limits, clock: Clock) -> None:
        self._queue = queue
        self._deliverer = deliverer
        self._limits = limits
        self._clock = clock
        self._recorder: Batcher[FinishedAttempt, bool] = Batcher(self._record, _CLAIM_AT_MOST)
        self._lanes: dict[str, asyncio.Semaphore] = {}
        self._in_flight = asyncio.Semaphore(limits.concurrency)
        # All that was claimed until it is recorded; of it, what was not begun and what is being sent.
        self._tasks: dict[_Lease, asyncio.Task[None]] = {}
        self._not_begun: dict[_Lease, ClaimedDelivery] = {}
        self._sending: set[_Lease] = set()
        # How much of that each endpoint has, until it is sent.
        self._held: Counter[str] = Counter()
        self._room = asyncio.Event()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Work until `stop` is called, then drain. An error of the store is logged and waited out."""
        recovering = asyncio.create_task(self._recover_lost_leases())
        try:
            while not self._stopping.is_set():
                try:
                    await self._turn()
                except Exception as error:
                    _log_failure("claim_failed", error)
                    await self._pause(_PAUSE_AFTER_ERROR)
        finally:
            self.stop()
            await self._drain()
            await recovering

    def stop(self) -> None:
        """Claim nothing more, and let `run` return when all is settled."""
        self._stopping.set()
        self._room.set()
        self._queue.wake()

    async def _turn(self) -> None:
        room = min(_CLAIM_AT_MOST, 2 * self._limits.concurrency - len(self._tasks))
        if room <= 0:
            self._room.clear()
            await self._room.wait()
            return
        claimed = await self._queue.claim(
            room,
            room=self._count_room,
            now=self._clock(),
            lease=self._limits.lease,
        )
        for delivery in claimed:
            self._start(delivery)
        if not claimed:
            await self._queue.wait(at_most=POLL)

    def _count_room(self, endpoint_id: str) -> int:
        return 2 * self._limits.endpoint_concurrency - self._held[endpoint_id]

    def _start(self, delivery: ClaimedDelivery) -> None:
        endpoint_id = delivery.endpoint.id
        self._held[endpoint_id] += 1
        if endpoint_id not in self._lanes:
            self._lanes[endpoint_id] = asyncio.Semaphore(self._limits.endpoint_concurrency)
        lease = _identify_lease(delivery)
        self._not_begun[lease] = delivery
        self._tasks[lease] = asyncio.create_task(self._process(delivery))
        self._tasks[lease].add_done_callback(lambda task: self._forget(lease, task))

    def _forget(self, lease: _Lease, task: asyncio.Task[None]) -> None:
        del self._tasks[lease]
        self._room.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            # The lease runs out, and the delivery is attempted again.
            _log.error("delivery_failed_in_carehook", delivery_id=lease[0], exc_info=error)

    async def _process(self, delivery: ClaimedDelivery) -> None:
        endpoint_id = delivery.endpoint.id
        try:
            async with self._lanes[endpoint_id], self._in_flight:
                finished = await self._attempt(delivery) if self._may_begin(delivery) else None
        finally:
            self._release(endpoint_id)
        if finished is not None:
            await self._settle(finished, delivery)
        elif not self._stopping.is_set():
            await self._give_back([delivery])

    def _may_begin(self, delivery: ClaimedDelivery) -> bool:
        # One that waited so long behind others that its result might come too late to count is begun anew.
        in_time = self._clock() + self._limits.attempt < delivery.lease_until
        return in_time and not self._stopping.is_set()

    async def _attempt(self, delivery: ClaimedDelivery) -> FinishedAttempt:
        lease = _identify_lease(delivery)
        del self._not_begun[lease]
        self._sending.add(lease)
        started_at = self._clock()
        try:
            return await self._deliverer.deliver_one(delivery)
        except asyncio.CancelledError:
            return self._deliverer.interrupt(delivery, started_at)
        finally:
            self._sending.discard(lease)

    async def _settle(self, finished: FinishedAttempt, delivery: ClaimedDelivery) -> None:
        while True:
            try:
                counted = await self._recorder.submit(finished)
            except Exception as error:
                _log_failure("result_not_recorded", error, delivery_id=delivery.id)
                if self._stopping.is_set() or self._clock() >= delivery.lease_until:
                    # The lease runs out, and the attempt is recorded as interrupted.
                    return
                await self._pause(_PAUSE_AFTER_ERROR)
            else:
                if not counted:
                    _log.warning("result_came_after_its_lease", delivery_id=delivery.id)
                return

    def _release(self, endpoint_id: str) -> None:
        self._held[endpoint_id] -= 1
        if self._held[endpoint_id] == self._limits.endpoint_concurrency:
            # It was passed over until now, though it may have more that is due.
            self._queue.wake([endpoint_id])
        if not self._held[endpoint_id]:
            del self._held[endpoint_id], self._lanes[endpoint_id]

    async def _record(self, finished: Sequence[FinishedAttempt]) -> Sequence[bool]:
        return await self._queue.finish(finished, self._clock())

    async def _give_back(self, claimed: Sequence[ClaimedDelivery]) -> None:
        for each in claimed:
            del self._not_begun[_identify_lease(each)]
        try:
            await self._queue.give_back(claimed)
        except Exception as error:
            # Their leases run out.
            _log_failure("deliveries_not_given_back", error, deliveries=len(claimed))

    async def _recover_lost_leases(self) -> None:
        while not self._stopping.is_set():
            try:
                if lost := await self._queue.recover_lost(self._clock()):
                    _log.warning("leases_lost", deliveries=lost)
            except Exception as error:
                _log_failure("lost_leases_not_recovered", error)
            await self._pause(LOST_LEASES_EVERY)

    async def _pause(self, duration: timedelta) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), duration.total_seconds())
        except TimeoutError:
            return

    async def _drain(self) -> None:
        await self._give_back(list(self._not_begun.values()))
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=self._limits.drain.total_seconds())
        for lease in self._sending:
            # Only these: what waits to be recorded has its result already.
            self._tasks[lease].cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        await self._recorder.close()


def _identify_lease(delivery: ClaimedDelivery) -> _Lease:
    return delivery.id, delivery.lease_token


def _log_failure(event: str, error: Exception, **fields: object) -> None:
    """Log an error with its places, but a store that is away with the reason alone: it is told anew each second."""
    if isinstance(error, LedgerUnavailable):
        _log.error(event, reason=str(error), **fields)
    else:
        _log.error(event, exc_info=error, **fields)
