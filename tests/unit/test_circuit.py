"""A circuit opens after failures in a row, lets probes through at growing intervals, and is closed by any success."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carehook.ledger.circuit import (
    CLEAN,
    DISABLED_AFTER,
    FIRST_PROBE_AFTER,
    LONGEST_PROBE_AFTER,
    OPENS_AT,
    Failure,
    Tally,
    decide_disabling,
    record,
)
from carehook.ledger.records import Lane

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def fail(lane: Lane, *started_at: datetime, now: datetime = NOW, jitter: float = 0.0, succeeded: bool = False) -> Lane:
    """The lane after attempts that failed, after one that succeeded where there was one."""
    failures = [Failure(at, f"failure at {at:%S}") for at in started_at]
    return record(lane, Tally(succeeded, failures), now, jitter)


def succeed(lane: Lane) -> Lane:
    return fail(lane, succeeded=True)


def build_open(probes: int = 0) -> Lane:
    """A lane whose circuit is open and whose probe is due at NOW."""
    lane = fail(CLEAN, *[NOW - 60 * SECOND] * OPENS_AT, now=NOW - 10 * SECOND)
    return replace(lane, probe_at=NOW, probes=probes)


def test_failures_are_counted_with_the_first_instant_and_the_last_reason() -> None:
    lane = fail(fail(CLEAN, NOW, NOW + SECOND), NOW + 2 * SECOND)
    assert lane == Lane(failure_streak=3, failing_since=NOW, last_failure="failure at 02")


@pytest.mark.parametrize("batches", [[10], [9, 1], [1] * 10, [4, 3, 3]])
def test_it_opens_at_ten_in_a_row_in_any_batches(batches: list[int]) -> None:
    lane = CLEAN
    for size in batches:
        assert lane.opened_at is None
        lane = fail(lane, *[NOW] * size)
    assert (lane.opened_at, lane.probe_at, lane.probes) == (NOW, NOW + FIRST_PROBE_AFTER, 0)


def test_a_success_in_between_begins_the_count_anew() -> None:
    lane = succeed(fail(CLEAN, *[NOW] * 9))
    assert lane == CLEAN
    lane = fail(lane, *[NOW] * 9)
    assert lane.opened_at is None
    lane = fail(lane, NOW + SECOND, succeeded=True)
    assert lane == Lane(1, NOW + SECOND, "failure at 01")


def test_ten_failures_after_a_success_in_one_batch_open_it() -> None:
    assert fail(CLEAN, *[NOW] * 10, succeeded=True).opened_at == NOW


def test_nothing_happened_changes_nothing() -> None:
    lane = build_open()
    assert fail(lane) == lane


def test_a_success_closes_an_open_circuit() -> None:
    assert succeed(build_open()) == CLEAN


def test_a_probe_that_failed_doubles_the_wait_up_to_the_longest() -> None:
    lane, waits = build_open(), list[float]()
    for _ in range(8):
        assert lane.probe_at is not None
        now = lane.probe_at
        lane = fail(lane, now, now=now)
        assert lane.probe_at is not None
        waits.append((lane.probe_at - now).total_seconds())
    assert waits == [20, 40, 80, 160, 300, 300, 300, 300]
    assert lane.failure_streak == 18
    assert lane.opened_at == NOW - 10 * SECOND


@given(probes=st.integers(0, 10**6), jitter=st.floats(-1, 1))
def test_the_wait_is_spread_by_a_fifth_and_no_more(probes: int, jitter: float) -> None:
    plain, spread = fail(build_open(probes), NOW).probe_at, fail(build_open(probes), NOW, jitter=jitter).probe_at
    assert plain is not None
    assert spread is not None
    assert plain - NOW <= LONGEST_PROBE_AFTER
    assert abs((spread - NOW) - (plain - NOW) * (1 + 0.2 * jitter)) < timedelta(milliseconds=1)


@pytest.mark.parametrize("jitter", [-1, 1])
def test_the_first_wait_is_spread_as_well(jitter: int) -> None:
    lane = fail(CLEAN, *[NOW] * 10, jitter=jitter)
    assert lane.probe_at == NOW + FIRST_PROBE_AFTER * (1 + 0.2 * jitter)


def test_late_failures_of_requests_from_before_do_not_move_the_probe() -> None:
    opened = build_open()
    lane = fail(opened, *[NOW - SECOND] * 5, now=NOW + SECOND)
    assert (lane.probe_at, lane.probes, lane.failure_streak) == (NOW, 0, 15)


@pytest.mark.parametrize("started", [(NOW, NOW - SECOND), (NOW - SECOND, NOW)])
def test_a_probe_counts_wherever_it_is_in_a_batch(started: tuple[datetime, datetime]) -> None:
    lane = fail(build_open(), *started, now=NOW + SECOND)
    assert (lane.probe_at, lane.probes) == (NOW + SECOND + 2 * FIRST_PROBE_AFTER, 1)


def build_failing(streak: int = OPENS_AT, since: datetime = NOW - DISABLED_AFTER) -> Lane:
    return Lane(streak, since, "503 Service Unavailable")


def test_five_days_of_nothing_but_failure_disable_with_the_reason() -> None:
    reason = decide_disabling(build_failing(), NOW)
    assert reason == "every attempt since 2026-02-24T12:00:00Z failed; of the last one: 503 Service Unavailable"


@pytest.mark.parametrize(
    "lane", [CLEAN, build_failing(streak=OPENS_AT - 1), build_failing(since=NOW - DISABLED_AFTER + SECOND)]
)
def test_less_than_that_disables_nothing(lane: Lane) -> None:
    assert decide_disabling(lane, NOW) is None


def test_a_success_within_the_five_days_begins_them_anew() -> None:
    lane = fail(build_failing(), *[NOW - SECOND] * OPENS_AT, succeeded=True)
    assert decide_disabling(lane, NOW) is None
    assert decide_disabling(lane, NOW + DISABLED_AFTER) is not None
