"""Group commit: what is submitted while a batch is being written waits, and goes together in the next one.

An idle batcher writes at once and a busy one writes larger batches, so nothing waits on a timer. Batches are
written one after another, in the order of submission.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class BatcherClosedError(RuntimeError):
    """An item was submitted after `close`; nothing was written for it."""


class _Submission(NamedTuple, Generic[Item, Result]):
    item: Item
    weight: int
    result: asyncio.Future[Result]


class Batcher(Generic[Item, Result]):
    """Turns many concurrent `submit` calls into few calls of `write`.

    `write` gets the items of one batch, never none, and returns one result for each, in the same order. It
    must be all or nothing: when it raises, nothing of the batch may have been kept, for a batch that failed
    with one of the errors `isolate_on` is then written item by item, so that an item that cannot be written
    fails alone. Narrow `isolate_on` to the errors that an item can cause, or an unreachable database is asked
    once more for every item.

    `weigh` gives the weight of an item toward `max_size`, at least 1 (by default each weighs 1). An item
    heavier than `max_size` goes alone.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        max_size: int,
        weigh: Callable[[Item], int] | None = None,
        isolate_on: type[Exception] | tuple[type[Exception], ...] = Exception,
    ) -> None:
        if max_size < 1:
            raise ValueError("max_size must be at least 1.")
        self._write = write
        self._max_size = max_size
        self._weigh = weigh
        self._isolate_on = isolate_on
        self._waiting: deque[_Submission[Item, Result]] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._closed = False

    async def submit(self, item: Item) -> Result:
        """The result of writing `item`, once its batch is written.

        Raises what `write` raised for it, or `BatcherClosedError`. Cancelling a caller withdraws its item if
        the item still waits; in a batch that has begun it may be written all the same. The neighbours never
        notice.
        """
        if self._closed:
            raise BatcherClosedError("This batcher is closed: it writes nothing more.")
        weight = 1 if self._weigh is None else self._weigh(item)
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Submission(item, weight, result))
        if self._writer is None:
            # An empty context: the batch is not the first caller's, so its logging context must not mark it.
            self._writer = asyncio.create_task(self._write_until_idle(), context=Context())
        return await result

    async def close(self) -> None:
        """Refuse further items and return when all that were submitted are written. May be called again."""
        self._closed = True
        if self._writer is not None:
            # Shield: a caller who stops waiting for the end must not tear down the write under way.
            await asyncio.shield(self._writer)

    async def _write_until_idle(self) -> None:
        batch: Sequence[_Submission[Item, Result]] = ()
        try:
            while batch := self._take_batch():
                await self._write_batch(batch)
        finally:
            self._writer = None
            # Only if this task was cancelled is there anybody left to release.
            for submission in (*batch, *self._waiting):
                submission.result.cancel()
            self._waiting.clear()

    def _take_batch(self) -> list[_Submission[Item, Result]]:
        batch: list[_Submission[Item, Result]] = []
        room = self._max_size
        while self._waiting:
            submission = self._waiting[0]
            if not submission.result.done():
                room -= submission.weight
                if room < 0 and batch:
                    break
                batch.append(submission)
            self._waiting.popleft()
        return batch

    async def _write_batch(self, batch: Sequence[_Submission[Item, Result]]) -> None:
        try:
            results = await self._write([submission.item for submission in batch])
        except Exception as error:
            await self._settle_failure(batch, error)
        else:
            self._settle(batch, results)

    def _settle(self, batch: Sequence[_Submission[Item, Result]], results: Sequence[Result]) -> None:
        if len(results) != len(batch):
            # Written already, so it must not be written again item by item.
            self._fail(batch, RuntimeError(f"write returned {len(results)} results for {len(batch)} items."))
            return
        for submission, value in zip(batch, results, strict=True):
            if not submission.result.done():
                submission.result.set_result(value)

    async def _settle_failure(self, batch: Sequence[_Submission[Item, Result]], error: Exception) -> None:
        if len(batch) == 1 or not isinstance(error, self._isolate_on):
            self._fail(batch, error)
            return
        for submission in batch:
            if not submission.result.done():
                await self._write_batch([submission])

    def _fail(self, batch: Sequence[_Submission[Item, Result]], error: Exception) -> None:
        for submission in batch:
            if not submission.result.done():
                submission.result.set_exception(error)
