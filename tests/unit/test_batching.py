"""The batcher's law: one batch at a time, everything that waits in the next, nobody harmed by a neighbour."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar

import pytest

from carehook.batching import Batcher, BatcherClosedError


class RejectedError(ValueError):
    """What a store says of an item that cannot be written."""


class Disk:
    """A store that keeps what it is given, all or nothing, and writes only when the test lets it."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.batches: list[list[str]] = []
        self.kept: list[str] = []
        self.gate = asyncio.Event()
        self.failure: Exception | None = None
        if is_open:
            self.gate.set()

    async def write(self, items: Sequence[str]) -> Sequence[str]:
        self.batches.append(list(items))
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        if any("poison" in item for item in items):
            raise RejectedError("poison")
        self.kept += items
        return [item.upper() for item in items]


async def settle() -> None:
    """Let every task that can run come to its next wait."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_one_item_is_written_at_once_and_gets_its_result() -> None:
    disk = Disk()
    batcher = Batcher(disk.write, max_size=10)
    assert await batcher.submit("a") == "A"
    assert disk.batches == [["a"]]


async def test_items_that_come_while_a_batch_is_written_go_together_in_the_next() -> None:
    disk = Disk(is_open=False)
    batcher = Batcher(disk.write, max_size=10)
    first = asyncio.create_task(batcher.submit("a"))
    await settle()
    others = [asyncio.create_task(batcher.submit(item)) for item in "bcd"]
    await settle()
    assert disk.batches == [["a"]]
    disk.gate.set()
    assert await asyncio.gather(first, *others) == ["A", "B", "C", "D"]
    assert disk.batches == [["a"], ["b", "c", "d"]]


async def test_no_batch_is_larger_than_the_maximum_and_order_is_kept() -> None:
    disk = Disk()
    batcher = Batcher(disk.write, max_size=4)
    await asyncio.gather(*(batcher.submit(item) for item in "abcdefghij"))
    assert disk.batches == [["a", "b", "c", "d"], ["e", "f", "g", "h"], ["i", "j"]]


async def test_items_count_by_their_weight_and_one_over_the_maximum_goes_alone() -> None:
    disk = Disk()
    batcher = Batcher(disk.write, max_size=5, weigh=len)
    items = ["aa", "bbb", "c", "ddddddddd", "e", "ffff", "g"]
    await asyncio.gather(*(batcher.submit(item) for item in items))
    assert disk.batches == [["aa", "bbb"], ["c"], ["ddddddddd"], ["e", "ffff"], ["g"]]


async def test_an_item_that_cannot_be_written_fails_alone() -> None:
    disk = Disk()
    batcher = Batcher(disk.write, max_size=10)
    results = await asyncio.gather(*(batcher.submit(item) for item in ["a", "poison", "b"]), return_exceptions=True)
    assert [results[0], results[2]] == ["A", "B"]
    assert isinstance(results[1], RejectedError)
    assert disk.kept == ["a", "b"]


async def test_an_error_that_no_item_caused_is_not_tried_again_item_by_item() -> None:
    disk = Disk()
    disk.failure = ConnectionError("the store is away")
    batcher = Batcher(disk.write, max_size=10, isolate_on=RejectedError)
    results = await asyncio.gather(*(batcher.submit(item) for item in "abc"), return_exceptions=True)
    assert results == [disk.failure] * 3
    assert disk.batches == [["a", "b", "c"]]


async def test_a_failure_does_not_stop_the_batches_after_it() -> None:
    disk = Disk()
    batcher = Batcher(disk.write, max_size=1)
    results = await asyncio.gather(*(batcher.submit(item) for item in ["poison", "a"]), return_exceptions=True)
    assert isinstance(results[0], RejectedError)
    assert results[1] == "A"


async def test_a_write_that_returns_too_few_results_is_not_repeated() -> None:
    written: list[str] = []

    async def write(items: Sequence[str]) -> Sequence[str]:
        written.extend(items)
        return items[1:]

    batcher = Batcher(write, max_size=10)
    results = await asyncio.gather(*(batcher.submit(item) for item in "abc"), return_exceptions=True)
    assert [str(error) for error in results] == ["write returned 2 results for 3 items."] * 3
    assert written == ["a", "b", "c"]


async def test_a_caller_cancelled_while_it_waits_withdraws_its_item() -> None:
    disk = Disk(is_open=False)
    batcher = Batcher(disk.write, max_size=10)
    tasks = [asyncio.create_task(batcher.submit("a"))]
    await settle()
    tasks += [asyncio.create_task(batcher.submit(item)) for item in "bcd"]
    await settle()
    tasks[2].cancel()
    await settle()
    disk.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [results[0], results[1], results[3]] == ["A", "B", "D"]
    assert isinstance(results[2], asyncio.CancelledError)
    assert disk.kept == ["a", "b", "d"]


async def test_a_caller_cancelled_during_its_batch_does_not_disturb_the_others() -> None:
    disk = Disk(is_open=False)
    batcher = Batcher(disk.write, max_size=10)
    tasks = [asyncio.create_task(batcher.submit(item)) for item in "abc"]
    await settle()
    tasks[0].cancel()
    await settle()
    disk.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == ["B", "C"]


async def test_a_caller_cancelled_while_its_batch_fails_withdraws_its_item() -> None:
    disk = Disk(is_open=False)
    batcher = Batcher(disk.write, max_size=10)
    tasks = [asyncio.create_task(batcher.submit(item)) for item in ["poison", "a", "b"]]
    await settle()
    tasks[2].cancel()
    await settle()
    disk.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [RejectedError, str, asyncio.CancelledError]
    assert disk.kept == ["a"]


async def test_close_waits_for_what_is_pending_and_refuses_what_comes_after() -> None:
    disk = Disk(is_open=False)
    batcher = Batcher(disk.write, max_size=1)
    tasks = [asyncio.create_task(batcher.submit(item)) for item in "ab"]
    await settle()
    closing = asyncio.create_task(batcher.close())
    await settle()
    with pytest.raises(BatcherClosedError):
        await batcher.submit("c")
    assert not closing.done()
    disk.gate.set()
    await closing
    assert disk.kept == ["a", "b"]
    assert await asyncio.gather(*tasks) == ["A", "B"]


async def test_giving_up_on_close_leaves_the_write_alone() -> None:
    disk = Disk(is_open=False)
    batcher = Batcher(disk.write, max_size=1)
    task = asyncio.create_task(batcher.submit("a"))
    await settle()
    closing = asyncio.create_task(batcher.close())
    await settle()
    closing.cancel()
    await settle()
    disk.gate.set()
    assert await task == "A"


async def test_an_idle_batcher_has_no_task() -> None:
    batcher = Batcher(Disk().write, max_size=10)
    await batcher.submit("a")
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await batcher.close()


@pytest.mark.parametrize("failing_writes", [0, 1], ids=["in a batch", "item by item"])
async def test_callers_are_released_when_the_write_is_torn_down(failing_writes: int) -> None:
    writes: list[Sequence[str]] = []

    async def write(items: Sequence[str]) -> Sequence[str]:
        writes.append(items)
        if len(writes) <= failing_writes:
            raise RejectedError("not all at once")
        await asyncio.Event().wait()
        return items

    batcher = Batcher(write, max_size=2)
    callers = [asyncio.create_task(batcher.submit(item)) for item in "abc"]
    await settle()
    (writer,) = asyncio.all_tasks() - {*callers, asyncio.current_task()}
    writer.cancel()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 3


async def test_a_batch_does_not_run_in_the_context_of_its_first_caller() -> None:
    caller: ContextVar[str] = ContextVar("caller", default="nobody")
    seen: list[str] = []

    async def write(items: Sequence[str]) -> Sequence[str]:
        seen.append(caller.get())
        return items

    caller.set("somebody")
    await Batcher(write, max_size=10).submit("a")
    assert seen == ["nobody"]


@pytest.mark.parametrize("max_size", [0, -1])
def test_a_batch_must_have_room_for_an_item(max_size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Batcher(Disk(is_open=False).write, max_size=max_size)
