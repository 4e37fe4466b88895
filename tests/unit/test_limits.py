"""How many deliveries an endpoint's limits let through: never too many in any window, and on average all of them."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carehook.ledger.limits import TOLERANCE, Allowance, Limited, advance_slot, decide_allowance
from carehook.ledger.records import Lane

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
PLENTY = 1_000_000

RATES = st.sampled_from([0.01, 0.2, 1.0, 3.0, 7.0, 100.0, 333.3, 1000.0, 10_000.0])


def build_limited(
    *, in_flight: int = 0, max_in_flight: int | None = None, rate_limit: float | None = None, lane: Lane | None = None
) -> Limited:
    return Limited("ep_1", max_in_flight, rate_limit, lane or Lane(), None, in_flight)


def lease(limited: Limited, now: datetime, room: int = PLENTY) -> tuple[int, Limited, Allowance]:
    """Lease all that is allowed, as from an endless backlog."""
    allowance = decide_allowance(limited, room, now)
    return allowance.room, replace(limited, next_slot_at=advance_slot(limited, allowance.room, now)), allowance


def count_most_in(window: timedelta, leases: list[tuple[datetime, int]]) -> int:
    """The most that were leased within any window of this length."""
    return max(sum(count for at, count in leases if start <= at < start + window) for start, _ in leases)


@pytest.mark.parametrize(
    ("most", "in_flight", "room", "expected"), [(5, 0, 3, 3), (5, 0, 9, 5), (5, 4, 9, 1), (5, 5, 9, 0), (2, 5, 9, 0)]
)
def test_no_more_in_flight_than_the_limit(most: int, in_flight: int, room: int, expected: int) -> None:
    limited = build_limited(max_in_flight=most, in_flight=in_flight)
    assert decide_allowance(limited, room, NOW) == Allowance(expected)


def test_without_limits_there_is_the_room_that_was_asked_for() -> None:
    assert decide_allowance(build_limited(in_flight=99), 7, NOW) == Allowance(7)


@given(
    rate=RATES,
    pauses=st.lists(st.floats(0, 3, allow_nan=False), min_size=1, max_size=40),
    window=st.sampled_from([0.001, 0.1, 1.0, 5.0]),
)
def test_no_window_holds_more_than_the_rate_and_the_tolerance_allow(
    rate: float, pauses: list[float], window: float
) -> None:
    limited, now, leases = build_limited(rate_limit=rate), NOW, list[tuple[datetime, int]]()
    for pause in pauses:
        now += timedelta(seconds=pause)
        count, limited, _ = lease(limited, now)
        leases.append((now, count))
    most = math.floor(rate * (window + TOLERANCE.total_seconds()) + 1e-3 * rate) + 1
    assert count_most_in(timedelta(seconds=window), leases) <= most


@given(rate=RATES, seed=st.integers(0, 1000))
def test_whoever_comes_back_when_told_reaches_the_rate(rate: float, seed: int) -> None:
    chance = random.Random(seed)
    limited, now, total = build_limited(rate_limit=rate), NOW, 0
    for _ in range(200):
        count, limited, allowance = lease(limited, now)
        total += count
        assert allowance.ask_again_at is not None
        assert allowance.ask_again_at > now
        # A claim is never on the spot.
        now = allowance.ask_again_at + chance.random() * timedelta(milliseconds=20)
    elapsed = (now - NOW).total_seconds()
    assert total >= math.floor(rate * elapsed * 0.999) - 1
    assert total <= rate * (elapsed + TOLERANCE.total_seconds()) * 1.001 + 1


def test_a_fast_endpoint_is_not_looked_at_for_each_request() -> None:
    limited, now, looks = build_limited(rate_limit=10_000.0), NOW, 0
    while now < NOW + SECOND:
        _, limited, allowance = lease(limited, now)
        assert allowance.ask_again_at is not None
        now, looks = allowance.ask_again_at, looks + 1
    assert looks <= 25


@pytest.mark.parametrize("idle", [SECOND, timedelta(days=30)])
def test_idle_time_saves_nothing_up(idle: timedelta) -> None:
    first, limited, _ = lease(build_limited(rate_limit=20.0), NOW)
    after_idling, _, _ = lease(limited, NOW + idle)
    assert after_idling == first == 3


def test_what_was_not_there_to_lease_does_not_count() -> None:
    limited = build_limited(rate_limit=1.0)
    assert advance_slot(limited, 0, NOW) is None
    assert lease(limited, NOW)[0] == 1


def test_a_backlog_within_the_rate_is_not_asked_about_again() -> None:
    assert decide_allowance(build_limited(rate_limit=1.0), 1, NOW) == Allowance(1)


def test_both_limits_hold_at_once() -> None:
    limited = build_limited(rate_limit=20.0, max_in_flight=2)
    count, limited, allowance = lease(limited, NOW)
    assert (count, allowance.ask_again_at) == (2, None)
    limited = replace(limited, in_flight=0, max_in_flight=100)
    assert lease(limited, NOW)[0] == 1
    assert lease(replace(limited, in_flight=100), NOW + SECOND)[0] == 0


def test_a_raised_rate_is_not_held_up_by_what_a_lower_one_left() -> None:
    _, limited, _ = lease(build_limited(rate_limit=0.01), NOW)
    assert limited.next_slot_at == NOW + 100 * SECOND
    raised = replace(limited, rate_limit=10.0)
    assert lease(raised, NOW + SECOND)[0] == 2


def test_a_clock_that_was_set_back_does_not_stop_an_endpoint() -> None:
    _, limited, _ = lease(build_limited(rate_limit=1.0), NOW + timedelta(days=1))
    assert lease(limited, NOW)[0] == 1


def build_open(probe_at: datetime) -> Lane:
    return Lane(failure_streak=10, failing_since=NOW, opened_at=NOW, probe_at=probe_at)


def test_an_open_circuit_lets_nothing_through_before_its_probe() -> None:
    limited = build_limited(lane=build_open(NOW + 10 * SECOND))
    assert decide_allowance(limited, 50, NOW + 9 * SECOND) == Allowance(0, NOW + 10 * SECOND)


def test_an_open_circuit_then_lets_one_through() -> None:
    limited = build_limited(lane=build_open(NOW), max_in_flight=20, rate_limit=500.0)
    assert decide_allowance(limited, 50, NOW) == Allowance(1)
    assert decide_allowance(replace(limited, in_flight=1), 50, NOW) == Allowance(0)


def test_a_probe_beyond_the_rate_does_not_undo_the_pace() -> None:
    limited = build_limited(rate_limit=1.0)
    _, limited, _ = lease(limited, NOW)
    _, limited, _ = lease(replace(limited, lane=build_open(NOW)), NOW)
    closed = replace(limited, lane=Lane())
    assert lease(closed, NOW + timedelta(milliseconds=500))[0] == 0
    assert lease(closed, NOW + 2 * SECOND)[0] == 1


def test_without_a_rate_the_slot_stays() -> None:
    assert advance_slot(build_limited(), 5, NOW) is None
    assert advance_slot(replace(build_limited(rate_limit=1.0), next_slot_at=NOW), 0, NOW) == NOW
