"""Results reach the store in batches: all that came while one batch was written goes together in the next.

Laws:
- Batches are written one after another, and nothing waits on a timer.
- A store that is away is asked again for as long as a result's lease holds, and then no more: the lease runs out, and
  the attempt is recorded as interrupted. A recorder that is closing asks once.
- A batch that is not taken for another reason is written one by one, so that a result at fault fails alone.
- An attempt is told of and counted when it has ended. That the store does not have its result, because its lease was
  lost or over before the store was back, is counted beside it (`attempts_unrecorded`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from datetime import timedelta
from typing import Final

import structlog

from carehook.clock import Clock
from carehook.dispatch.observation import Result, observe
from carehook.ledger.port import LedgerUnavailable, Queue
from carehook.metrics import Metrics

BATCH: Final = 500
"""Results in a transaction at most."""

_PAUSE_AFTER_ERROR: Final = timedelta(seconds=1)
_IDS_LOGGED: Final = 20

_log = structlog.get_logger("carehook.worker")


class Recorder:
    """Writes results; `on_written` is called after each batch."""

    def __init__(self, queue: Queue, metrics: Metrics, clock: Clock, on_written: Callable[[], None]) -> None:
        self._queue = queue
        self._metrics = metrics
        self._clock = clock
        self._on_written = on_written
        self._new: deque[Result] = deque()
        # What the store did not take, and when it is offered again, in seconds of the event loop's clock.
        self._refused: deque[Result] = deque()
        self._offer_again_at = 0.0
        self._is_away = False
        self._writing = 0
        self._writer: asyncio.Task[None] | None = None
        self._stirred = asyncio.Event()
        self._closing = asyncio.Event()

    @property
    def held(self) -> int:
        """How many results are not recorded yet."""
        return len(self._new) + len(self._refused) + self._writing

    def add(self, result: Result) -> None:
        """Record a result, soon."""
        self._new.append(result)
        self._stirred.set()
        if self._writer is None:
            # An empty context: the batch is not the first result's, so nothing of its log context must mark it.
            self._writer = asyncio.create_task(self._write_until_idle(), context=Context())

    async def close(self) -> None:
        """Return when all is recorded, or given up."""
        self._closing.set()
        self._stirred.set()
        if self._writer is not None:
            await asyncio.shield(self._writer)

    async def _write_until_idle(self) -> None:
        try:
            while self._new or self._refused:
                if self._is_away or not self._new:
                    await self._pause()
                await self._write_next()
        finally:
            self._writer = None

    async def _pause(self) -> None:
        """Until it is time to offer again; where the store is there, no longer than until something new has come."""
        seconds = self._offer_again_at - asyncio.get_running_loop().time()
        try:
            await asyncio.wait_for((self._closing if self._is_away else self._stirred).wait(), max(0.0, seconds))
        except TimeoutError:
            return

    async def _write_next(self) -> None:
        batch = self._take_batch()
        self._writing = len(batch)
        try:
            if batch:
                await self._write(batch)
        finally:
            self._writing = 0
            self._on_written()

    def _take_batch(self) -> list[Result]:
        self._stirred.clear()
        is_time = self._closing.is_set() or asyncio.get_running_loop().time() >= self._offer_again_at
        again = _take(self._refused, BATCH) if is_time else []
        new = _take(self._new, BATCH - len(again))
        self._tell(new)
        return again + new

    def _tell(self, results: Sequence[Result]) -> None:
        try:
            observe(results, self._metrics)
        except Exception as error:
            # What cannot be told is recorded all the same.
            log_failure("attempts_not_told", error)

    async def _write(self, batch: Sequence[Result]) -> None:
        try:
            counted = await self._queue.finish([each.finished for each in batch], self._clock())
        except Exception as error:
            self._is_away = isinstance(error, LedgerUnavailable)
            if self._is_away or len(batch) == 1:
                self._refuse(batch, error)
                return
            await self._write_each(batch)
            return
        self._is_away = False
        for result, did_count in zip(batch, counted, strict=True):
            if not did_count:
                self._metrics.attempts_unrecorded.inc()
                _log.warning("result_came_after_its_lease", delivery_id=result.delivery.id)

    async def _write_each(self, batch: Sequence[Result]) -> None:
        for position, each in enumerate(batch):
            if self._is_away:
                self._refused.extend(batch[position:])
                return
            await self._write([each])

    def _refuse(self, batch: Sequence[Result], error: Exception) -> None:
        log_failure("result_not_recorded", error, delivery_ids=[each.delivery.id for each in batch[:_IDS_LOGGED]])
        now = self._clock()
        again = [] if self._closing.is_set() else [each for each in batch if now < each.delivery.lease_until]
        self._refused.extend(again)
        self._metrics.attempts_unrecorded.inc(len(batch) - len(again))
        self._offer_again_at = asyncio.get_running_loop().time() + _PAUSE_AFTER_ERROR.total_seconds()


def _take(results: deque[Result], at_most: int) -> list[Result]:
    return [results.popleft() for _ in range(min(at_most, len(results)))]


def log_failure(event: str, error: Exception, **fields: object) -> None:
    """Log an error with its places, but a store that is away with the reason alone: it is told anew each second."""
    if isinstance(error, LedgerUnavailable):
        _log.error(event, reason=str(error), **fields)
    else:
        _log.error(event, exc_info=error, **fields)
