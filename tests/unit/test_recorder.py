"""The recorder: every result reaches the store once, in few batches, whatever the store does meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from carehook.dispatch import recorder as recorder_module
from carehook.dispatch.observation import Result
from carehook.dispatch.recorder import BATCH, Recorder
from carehook.ledger.port import LedgerUnavailable
from carehook.ledger.records import (
    Attempt,
    AttemptOutcome,
    ClaimedDelivery,
    Endpoint,
    FinishedAttempt,
)
from carehook.ledger.states import EndpointStatus, Transition
from carehook.metrics import Metrics

NOW = datetime(2024, 1, 1, tzinfo=UTC)
LEASE_UNTIL = NOW + timedelta(seconds=45)

ENDPOINT = Endpoint(
    id="ep_1",
    organization_id="org_1",
    url="https://example.com/hook",
    description="",
    event_types=(),
    status=EndpointStatus.ACTIVE,
    status_reason=None,
    sealed_secrets=b"",
    created_at=NOW,
    updated_at=NOW,
)


def build_result(name: str) -> Result:
    delivery = ClaimedDelivery(
        id=name,
        lease_token=1,
        lease_until=LEASE_UNTIL,
        attempt_count=0,
        failure_count=0,
        event_id="evt_1",
        event_type="patient_report_sent",
        accepted_at=NOW,
        body=b"{}",
        endpoint=ENDPOINT,
    )
    attempt = Attempt(
        id=f"att_{name}",
        delivery_id=name,
        number=1,
        started_at=NOW,
        duration=0.25,
        outcome=AttemptOutcome.RESPONDED,
        status_code=200,
        reason=None,
    )
    finished = FinishedAttempt(
        delivery_id=name,
        endpoint_id="ep_1",
        lease_token=1,
        attempt=attempt,
        transition=Transition.SUCCEED,
        due_at=None,
        spends_retry=False,
    )
    return Result(delivery, finished)


class Store:
    """What a queue keeps of results, all or nothing; it waits, is away, or refuses what it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.kept: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_away = False
        self.goes_away_after: int | None = None
        self.poison: set[str] = set()
        self.late: set[str] = set()

    async def finish(self, finished: Sequence[FinishedAttempt], now: datetime) -> Sequence[bool]:
        names = [each.delivery_id for each in finished]
        self.batches.append(names)
        await self.gate.wait()
        if self.is_away or (self.goes_away_after is not None and len(self.batches) > self.goes_away_after):
            raise LedgerUnavailable("the database does not answer")
        if self.poison.intersection(names):
            raise ValueError("a result that cannot be stored")
        self.kept += names
        return [name not in self.late for name in names]

    async def claim(
        self, limit: int, *, room: Callable[[str], int], now: datetime, lease: timedelta
    ) -> Sequence[ClaimedDelivery]:
        return []

    async def give_back(self, claimed: Iterable[ClaimedDelivery]) -> None:
        return

    async def find_changed(self, claimed: Collection[ClaimedDelivery]) -> Sequence[ClaimedDelivery]:
        return ()

    async def recover_lost(self, now: datetime) -> int:
        return 0

    def find_missing(self) -> str | None:
        return None

    def wake(self, endpoint_ids: Collection[str] = ()) -> None:
        return

    async def wait(self, *, at_most: timedelta) -> None:
        return


class Bench:
    """A recorder on a store, with a clock that is set by hand."""

    def __init__(self) -> None:
        self.store = Store()
        self.metrics = Metrics()
        self.now = NOW
        self.written = 0
        self._has_written = asyncio.Event()
        self.recorder = Recorder(self.store, self.metrics, lambda: self.now, self._count)

    def _count(self) -> None:
        self.written += 1
        self._has_written.set()

    async def until_idle(self) -> None:
        """Return when nothing is left to record."""
        while self.recorder.held:
            self._has_written.clear()
            await self._has_written.wait()

    def add(self, *names: str) -> None:
        for name in names:
            self.recorder.add(build_result(name))


async def settle() -> None:
    """Let every task that can run come to its next wait."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(recorder_module, "_PAUSE_AFTER_ERROR", timedelta(seconds=0.02))
    return Bench()


def count_attempts(bench: Bench) -> float:
    return bench.metrics.registry.get_sample_value("carehook_attempts_total", {"outcome": "succeeded"}) or 0


def count_unrecorded(bench: Bench) -> float | None:
    return bench.metrics.registry.get_sample_value("carehook_attempts_unrecorded_total")


async def test_what_comes_while_a_batch_is_written_goes_together_in_the_next(bench: Bench) -> None:
    bench.store.gate.clear()
    bench.add("a")
    await settle()
    bench.add("b", "c", "d")
    await settle()
    assert bench.store.batches == [["a"]]
    assert bench.recorder.held == 4
    bench.store.gate.set()
    await settle()
    assert bench.store.batches == [["a"], ["b", "c", "d"]]
    assert (bench.recorder.held, bench.written) == (0, 2)


async def test_no_batch_is_larger_than_the_maximum(bench: Bench) -> None:
    names = [str(number) for number in range(2 * BATCH + 1)]
    bench.add(*names)
    await settle()
    assert [len(batch) for batch in bench.store.batches] == [BATCH, BATCH, 1]
    assert bench.store.kept == names


async def test_an_idle_recorder_has_no_task(bench: Bench) -> None:
    bench.add("a")
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_store_that_is_away_is_asked_again_and_everything_is_recorded_once(bench: Bench) -> None:
    bench.store.is_away = True
    bench.add("a", "b")
    await settle()
    bench.add("c")
    await settle()
    assert bench.store.batches == [["a", "b"]], "a store that is away is left alone for a while"
    bench.store.is_away = False
    await bench.until_idle()
    assert sorted(bench.store.kept) == ["a", "b", "c"]
    assert (count_attempts(bench), count_unrecorded(bench)) == (3, 0)


async def test_what_came_while_the_store_went_away_does_not_ask_it_at_once(bench: Bench) -> None:
    bench.store.gate.clear()
    bench.store.is_away = True
    bench.add("a")
    await settle()
    bench.add("b")
    bench.store.gate.set()
    await settle()
    assert bench.store.batches == [["a"]]
    bench.store.is_away = False
    await bench.until_idle()
    assert sorted(bench.store.kept) == ["a", "b"]


async def test_a_store_that_goes_away_while_a_batch_is_written_one_by_one_gets_the_rest_later(bench: Bench) -> None:
    bench.store.poison = {"poison"}
    bench.store.goes_away_after = 2
    bench.add("poison", "a", "b", "c")
    await settle()
    assert bench.store.batches == [["poison", "a", "b", "c"], ["poison"], ["a"]]
    bench.store.poison, bench.store.goes_away_after = set(), None
    await bench.until_idle()
    assert sorted(bench.store.kept) == ["a", "b", "c", "poison"]


async def test_a_result_whose_lease_is_over_is_given_up_while_the_store_is_away(bench: Bench) -> None:
    bench.store.is_away = True
    bench.add("a")
    await settle()
    bench.now = LEASE_UNTIL
    await bench.until_idle()
    bench.store.is_away = False
    bench.add("b")
    await bench.until_idle()
    assert bench.store.kept == ["b"]
    assert (count_attempts(bench), count_unrecorded(bench)) == (2, 1)


async def test_a_result_at_fault_fails_alone_and_holds_nobody_up(bench: Bench) -> None:
    bench.store.poison = {"poison"}
    bench.add("a", "poison", "b")
    await settle()
    assert bench.store.kept == ["a", "b"]
    bench.add("c")
    await settle()
    assert bench.store.kept == ["a", "b", "c"], "what is new does not wait until the other is offered again"
    bench.store.poison = set()
    await bench.until_idle()
    assert bench.store.kept == ["a", "b", "c", "poison"]
    assert count_attempts(bench) == 4


async def test_a_result_at_fault_is_offered_again_though_others_come_without_end(bench: Bench) -> None:
    bench.store.poison = {"poison"}
    bench.add("poison")
    await settle()
    bench.store.poison = set()
    number = 0
    while "poison" not in bench.store.kept:
        bench.add(str(number := number + 1))
        await asyncio.sleep(0.001)
        assert number < 10_000
    assert bench.store.kept.count("poison") == 1


async def test_a_result_that_came_too_late_is_a_warning(bench: Bench) -> None:
    bench.store.late = {"b"}
    with capture_logs() as logs:
        bench.add("a", "b")
        await settle()
    warnings = [(each["event"], each["delivery_id"]) for each in logs if each["log_level"] == "warning"]
    assert warnings == [("result_came_after_its_lease", "b")]
    assert (count_attempts(bench), count_unrecorded(bench)) == (2, 1)


async def test_each_attempt_is_a_line_and_is_counted_before_it_is_recorded(bench: Bench) -> None:
    bench.store.gate.clear()
    with capture_logs() as logs:
        bench.add("a")
        await settle()
    (line,) = logs
    assert (line["event"], line["log_level"], line["delivery_id"]) == ("attempt", "info", "a")
    assert (line["outcome"], line["duration_ms"], line["since_accepted_s"]) == ("succeeded", 250.0, 0.25)
    assert count_attempts(bench) == 1
    bench.store.gate.set()
    await bench.recorder.close()


async def test_what_cannot_be_told_is_recorded_all_the_same(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(recorder_module, "observe", fail)
    bench.add("a")
    await settle()
    assert bench.store.kept == ["a"]


async def test_closing_waits_for_what_is_written_and_for_what_waits(bench: Bench) -> None:
    bench.store.gate.clear()
    bench.add("a")
    await settle()
    bench.add("b")
    closing = asyncio.create_task(bench.recorder.close())
    await settle()
    assert not closing.done()
    bench.store.gate.set()
    await closing
    assert bench.store.kept == ["a", "b"]


async def test_closing_asks_a_store_that_is_away_once_more_and_no_longer(bench: Bench) -> None:
    bench.store.is_away = True
    bench.add("a")
    await settle()
    bench.add("b")
    await bench.recorder.close()
    assert bench.store.kept == []
    assert bench.recorder.held == 0
    assert len(bench.store.batches) == 2
    assert (count_attempts(bench), count_unrecorded(bench)) == (2, 2)


async def test_closing_offers_what_was_refused_once_more(bench: Bench) -> None:
    bench.store.is_away = True
    bench.add("a")
    await settle()
    bench.store.is_away = False
    await bench.recorder.close()
    assert bench.store.kept == ["a"]
