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
    TRIED_FOR,
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


def test_a_circuit_that_nobody_tried_for_a_day_opens_anew() -> None:
    tried_at = NOW + TRIED_FOR
    lane = fail(build_open(probes=7), tried_at, now=tried_at + SECOND)
    assert (lane.opened_at, lane.probe_at, lane.probes) == (tried_at + SECOND, tried_at + SECOND + FIRST_PROBE_AFTER, 0)
    assert (lane.failure_streak, lane.failing_since) == (OPENS_AT + 1, NOW - 60 * SECOND)


def test_a_circuit_that_was_tried_within_a_day_stays_open() -> None:
    tried_at = NOW + TRIED_FOR - SECOND
    lane = fail(build_open(probes=7), tried_at, now=tried_at)
    assert (lane.opened_at, lane.probes) == (NOW - 10 * SECOND, 8)


def build_failing(since: datetime = NOW - DISABLED_AFTER, opened_at: datetime | None = NOW - TRIED_FOR) -> Lane:
    return Lane(OPENS_AT, since, "503 Service Unavailable", opened_at, NOW)


def test_five_days_of_nothing_but_failure_and_a_day_of_trying_disable_with_the_reason() -> None:
    reason = decide_disabling(build_failing(), NOW)
    assert reason == "every attempt since 2026-02-24T12:00:00Z failed; of the last one: 503 Service Unavailable"


@pytest.mark.parametrize(
    "lane",
    [
        CLEAN,
        build_failing(since=NOW - DISABLED_AFTER + SECOND),
        build_failing(opened_at=NOW - TRIED_FOR + SECOND),
        build_failing(opened_at=None),
    ],
    ids=["no failure", "not long enough", "not tried long enough", "too few failures"],
)
def test_less_than_that_disables_nothing(lane: Lane) -> None:
    assert decide_disabling(lane, NOW) is None


def test_a_success_within_the_five_days_begins_them_anew() -> None:
    lane = fail(build_failing(), *[NOW - SECOND] * OPENS_AT, succeeded=True)
    assert decide_disabling(lane, NOW) is None
    assert decide_disabling(lane, NOW + DISABLED_AFTER) is not None


def fail_at(lane: Lane, now: datetime, times: int = 1) -> Lane:
    """The lane after requests that began and failed at an instant."""
    return fail(lane, *[now] * times, now=now)


def keep_failing(lane: Lane, until: datetime) -> tuple[Lane, datetime]:
    """Let each probe fail as soon as it is due, as where deliveries wait; the lane, and the last one's instant."""
    assert lane.probe_at is not None
    while (now := lane.probe_at) <= until and decide_disabling(lane, now) is None:
        lane = fail_at(lane, now)
        assert lane.probe_at is not None
    return lane, now


def test_one_that_was_quiet_between_two_troubles_is_tried_for_a_day() -> None:
    """One failure, nothing for five days, then nine within a minute."""
    again = NOW + DISABLED_AFTER
    lane = fail_at(fail_at(CLEAN, NOW), again, times=9)
    assert lane.opened_at == again
    assert decide_disabling(lane, again) is None
    disabled_at = keep_failing(lane, until=again + 2 * TRIED_FOR)[1]
    assert TRIED_FOR <= disabled_at - again <= TRIED_FOR + 2 * LONGEST_PROBE_AFTER


def test_one_with_an_open_circuit_and_nothing_to_send_is_tried_for_a_day_when_there_is() -> None:
    lane = fail_at(CLEAN, NOW, times=OPENS_AT)
    again = NOW + DISABLED_AFTER
    lane = fail_at(lane, again)
    assert decide_disabling(lane, again) is None
    disabled_at = keep_failing(lane, until=again + 2 * TRIED_FOR)[1]
    assert TRIED_FOR <= disabled_at - again <= TRIED_FOR + 2 * LONGEST_PROBE_AFTER


def test_one_that_fails_whenever_it_is_asked_is_disabled_after_five_days() -> None:
    disabled_at = keep_failing(fail_at(CLEAN, NOW, times=OPENS_AT), until=NOW + 2 * DISABLED_AFTER)[1]
    assert DISABLED_AFTER <= disabled_at - NOW <= DISABLED_AFTER + 2 * LONGEST_PROBE_AFTER
