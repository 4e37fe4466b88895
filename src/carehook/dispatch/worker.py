"""The loop: claim what is due, deliver it, record what became of it.

Laws:
- What may be in flight, and what is claimed ahead, is for `lanes` to say; the rest of a backlog stays in the store,
  where it holds up nobody.
- A result is recorded in a batch with others, and counts only under the lease it was claimed with (`recorder`).
- Nothing is begun that could outlast its lease: what waited for too long is given back.
- Nothing is begun by an endpoint's values unless the store had them within the last `TRUSTED_SECONDS`: it is asked each
  second about what is claimed ahead, and what it says was cancelled, or is another's by now, is not begun either. While
  it does not answer, all that waits. Whoever changes an endpoint or cancels a delivery may reach the store though this
  worker does not, and what was sent meanwhile could not be recorded either.
- Stopping claims nothing more. What was claimed and not begun is given back at once; requests in flight may end, and
  those that do not in time are recorded as interrupted.

There is no task for each delivery but one for each request in flight, which goes on with the next delivery as long as
there is one.

Leases and due times go by the wall clock. Where it jumps forward, what is in flight may be sent twice; where it jumps
back, retries and the leases of a worker that died last longer by as much. Nothing is lost either way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog

from carehook.clock import Clock
from carehook.dispatch.delivery import ATTEMPT_LIMIT, Deliverer
from carehook.dispatch.lanes import Lanes
from carehook.dispatch.observation import Result
from carehook.dispatch.recorder import Recorder, log_failure
from carehook.dispatch.settling import settle_all
from carehook.dispatch.window import Ending
from carehook.ledger.port import Ledger, Queue
from carehook.ledger.records import AttemptOutcome, ClaimedDelivery, FinishedAttempt
from carehook.metrics import Metrics

LEASE: Final = timedelta(seconds=45)
"""For how long a claimed delivery is ours: a round of attempts that all take the whole time limit, then our own."""

POLL: Final = timedelta(seconds=0.5)
"""How long what another process made due, or what falls due with time, may go unseen."""

DRAIN: Final = timedelta(seconds=25)
"""How long requests in flight are waited for at a stop: longer than any attempt may take."""

LOST_LEASES_EVERY: Final = timedelta(seconds=5)
GIVE_BACK_EVERY: Final = timedelta(seconds=1)
CONFIRM_EVERY: Final = timedelta(seconds=1)
SETTLE_EVERY: Final = timedelta(seconds=1)

TRUSTED_SECONDS: Final = 3.0
"""For how long an endpoint is taken to be as the store had it: some times as long as it usually takes to ask again."""

_CLAIM_AT_MOST: Final = 500
_PAUSE_AFTER_ERROR: Final = timedelta(seconds=1)

_log = structlog.get_logger("carehook.worker")


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

    def __init__(
        self, ledger: Ledger, queue: Queue, deliverer: Deliverer, limits: Limits, metrics: Metrics, clock: Clock
    ) -> None:
        self._ledger = ledger
        self._queue = queue
        self._deliverer = deliverer
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._lanes = Lanes(limits.concurrency, limits.endpoint_concurrency)
        self._room = asyncio.Event()
        self._recorder = Recorder(queue, metrics, clock, on_written=self._room.set)
        self._senders: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Work until `stop` is called, then drain. An error of the store is logged and waited out."""
        chores = [
            asyncio.create_task(self._repeat(LOST_LEASES_EVERY, self._recover_lost_leases)),
            asyncio.create_task(self._repeat(GIVE_BACK_EVERY, self._give_back_what_waits)),
            asyncio.create_task(self._repeat(CONFIRM_EVERY, self._confirm_what_waits)),
            asyncio.create_task(self._repeat(SETTLE_EVERY, self._settle_endpoints)),
        ]
        try:
            while not self._stopping.is_set():
                try:
                    await self._turn()
                except Exception as error:
                    log_failure("claim_failed", error)
                    await self._pause(_PAUSE_AFTER_ERROR)
        finally:
            self.stop()
            await self._drain()
            await asyncio.wait(chores)

    def stop(self) -> None:
        """Claim nothing more, and let `run` return when all is settled."""
        self._stopping.set()
        self._lanes.close()
        self._room.set()
        self._queue.wake()

    async def _turn(self) -> None:
        self._room.clear()
        places = 2 * self._limits.concurrency - self._lanes.held - self._recorder.held
        if places <= 0:
            await self._room.wait()
            return
        asked_at = time.monotonic()
        claimed = await self._queue.claim(
            min(_CLAIM_AT_MOST, places), room=self._lanes.room, now=self._clock(), lease=self._limits.lease
        )
        self._lanes.add(claimed, asked_at)
        self._begin_all()
        if not claimed:
            await self._queue.wait(at_most=POLL)

    def _begin_all(self) -> None:
        """Begin all that may begin, each with a sender of its own."""
        while (begun := self._begin()) is not None:
            # An empty context: one sender serves many deliveries.
            sender = asyncio.create_task(self._send(*begun), context=Context())
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)

    def _begin(self) -> tuple[ClaimedDelivery, datetime] | None:
        now = self._clock()
        delivery = self._lanes.begin(now + self._limits.attempt, time.monotonic() - TRUSTED_SECONDS)
        return None if delivery is None else (delivery, now)

    async def _send(self, delivery: ClaimedDelivery, started_at: datetime) -> None:
        """Send a delivery, and then the next, for as long as there is one."""
        begun: tuple[ClaimedDelivery, datetime] | None = (delivery, started_at)
        while begun is not None:
            await self._send_one(*begun)
            begun = self._begin()
            # An answer may have made room for more than the one that takes its place.
            self._begin_all()

    async def _send_one(self, delivery: ClaimedDelivery, started_at: datetime) -> None:
        ending, seconds = Ending.UNTOLD, 0.0
        try:
            finished = await self._attempt(delivery, started_at)
            ending, seconds = match_ending(finished), finished.attempt.duration
            self._recorder.add(Result(delivery, finished))
        except Exception as error:
            # The lease runs out, and the delivery is attempted again.
            _log.error("delivery_failed_in_carehook", delivery_id=delivery.id, exc_info=error)
        finally:
            self._room.set()
            if self._lanes.end(delivery.endpoint.id, ending, seconds):
                self._queue.wake([delivery.endpoint.id])

    async def _attempt(self, delivery: ClaimedDelivery, started_at: datetime) -> FinishedAttempt:
        try:
            return await self._deliverer.deliver_one(delivery, started_at)
        except asyncio.CancelledError:
            return self._deliverer.interrupt(delivery, started_at)

    async def _recover_lost_leases(self) -> None:
        try:
            if lost := await self._queue.recover_lost(self._clock()):
                self._metrics.leases_lost.inc(lost)
                _log.warning("leases_lost", deliveries=lost)
        except Exception as error:
            log_failure("lost_leases_not_recovered", error)

    async def _confirm_what_waits(self) -> None:
        """Ask whether what waits is still to be sent as it was claimed."""
        waiting, asked_at = self._lanes.find_waiting(), time.monotonic()
        if not waiting:
            return
        try:
            changed = await self._queue.find_changed(waiting)
        except Exception as error:
            log_failure("deliveries_not_confirmed", error, deliveries=len(waiting))
            return
        self._lanes.confirm(waiting, changed, asked_at)
        self._begin_all()
        if changed:
            await self._give_back_what_waits()

    async def _settle_endpoints(self) -> None:
        try:
            await settle_all(self._ledger, self._clock, self._stopping)
        except Exception as error:
            log_failure("endpoints_not_settled", error)

    async def _give_back_what_waits(self) -> None:
        withdrawn = self._lanes.withdraw(self._clock() + self._limits.attempt)
        await self._give_back(withdrawn)
        if withdrawn:
            self._room.set()

    async def _give_back(self, claimed: Sequence[ClaimedDelivery]) -> None:
        if not claimed:
            return
        try:
            await self._queue.give_back(claimed)
        except Exception as error:
            # Their leases run out.
            log_failure("deliveries_not_given_back", error, deliveries=len(claimed))

    async def _repeat(self, every: timedelta, act: Callable[[], Awaitable[None]]) -> None:
        while not self._stopping.is_set():
            await act()
            await self._pause(every)

    async def _pause(self, duration: timedelta) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), duration.total_seconds())
        except TimeoutError:
            return

    async def _drain(self) -> None:
        await self._give_back(self._lanes.clear())
        if self._senders:
            await asyncio.wait(self._senders, timeout=self._limits.drain.total_seconds())
        for sender in self._senders:
            sender.cancel()
        if self._senders:
            await asyncio.wait(self._senders)
        await self._recorder.close()


def match_ending(finished: FinishedAttempt) -> Ending:
    """What an attempt says of its endpoint."""
    if finished.succeeded:
        return Ending.SUCCEEDED
    return _ENDINGS[finished.attempt.outcome]


_ENDINGS: Final = {
    AttemptOutcome.RESPONDED: Ending.FAILED,
    AttemptOutcome.UNREACHABLE: Ending.UNANSWERED,
    AttemptOutcome.BLOCKED: Ending.UNTOLD,
    AttemptOutcome.INTERRUPTED: Ending.UNTOLD,
}
