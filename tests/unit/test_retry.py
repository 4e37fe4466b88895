"""What follows an attempt: the whole table, and whatever a receiver writes into `Retry-After`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from carehook.config import DEFAULT_RETRY_SCHEDULE
from carehook.dispatch.retry import JITTER, Decision, decide, read_retry_after
from carehook.exchange import Blocked, Interrupted, Outcome, Responded, Unreachable
from carehook.ledger.states import Transition

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
SCHEDULE = (5.0, 300.0, 1800.0)
SECOND = timedelta(seconds=1)
DAY = timedelta(hours=24)

ANSWERED_NO = [
    Responded(status) for status in [*range(100, 200, 33), *range(300, 400, 7), *range(400, 410), *range(411, 600)]
]
FAILURES: list[Outcome] = [*ANSWERED_NO, Unreachable("no connection"), Blocked("loopback")]


def decide_on(
    outcome: Outcome, *, failures: int = 0, attempts: int | None = None, jitter: float = 0.0, now: datetime = NOW
) -> Decision:
    return decide(
        outcome,
        schedule=SCHEDULE,
        attempts=failures if attempts is None else attempts,
        failures=failures,
        now=now,
        jitter=jitter,
    )


def wait_after(outcome: Outcome, *, failures: int = 0, jitter: float = 0.0) -> timedelta:
    due_at = decide_on(outcome, failures=failures, jitter=jitter).due_at
    assert due_at is not None
    return due_at - NOW


# What each outcome leads to.


@pytest.mark.parametrize("failures", range(5))
@pytest.mark.parametrize("status", range(200, 300))
def test_any_2xx_is_success_however_often_it_failed_before(status: int, failures: int) -> None:
    assert decide_on(Responded(status), failures=failures) == Decision(Transition.SUCCEED, None, False, None)


@pytest.mark.parametrize("outcome", FAILURES, ids=repr)
def test_every_failure_goes_by_the_schedule_and_then_is_exhausted(outcome: Outcome) -> None:
    for failures, delay in enumerate(SCHEDULE):
        due_at = NOW + timedelta(seconds=delay)
        assert decide_on(outcome, failures=failures) == Decision(Transition.RESCHEDULE, due_at, True, None)
    assert decide_on(outcome, failures=len(SCHEDULE)) == Decision(Transition.EXHAUST, None, True, None)


@pytest.mark.parametrize("failures", range(5))
def test_410_disables_the_endpoint_and_costs_the_delivery_no_retry(failures: int) -> None:
    decision = decide_on(Responded(410, {"retry-after": "3600"}), failures=failures)
    assert decision == Decision(Transition.RESCHEDULE, NOW, False, "the endpoint answered 410 Gone")


@pytest.mark.parametrize(
    ("attempts", "delay"), [(0, 5.0), (1, 300.0), (2, 300.0), (40, 300.0)], ids=["first", "second", "third", "later"]
)
def test_an_interruption_costs_no_retry_and_waits_for_the_second_delay_at_most(attempts: int, delay: float) -> None:
    # Also where every failure that the schedule has room for was spent.
    for failures in range(5):
        decision = decide_on(Interrupted("stopped"), failures=failures, attempts=attempts)
        assert decision == Decision(Transition.RESCHEDULE, NOW + timedelta(seconds=delay), False, None)


def test_a_schedule_of_one_delay_serves_for_interruptions_too() -> None:
    decision = decide(Interrupted("stopped"), schedule=[7.0], attempts=9, failures=0, now=NOW, jitter=0.0)
    assert decision.due_at == NOW + timedelta(seconds=7)


@given(
    schedule=st.lists(st.floats(0.001, 604_800), min_size=1, max_size=12),
    interruptions=st.lists(st.booleans(), max_size=30),
)
def test_a_delivery_is_exhausted_after_its_schedule_and_one_attempt_whatever_interrupts_it(
    schedule: list[float], interruptions: list[bool]
) -> None:
    attempts = failures = 0
    pending_interruptions = list(interruptions)
    while True:
        interrupted = bool(pending_interruptions) and pending_interruptions.pop()
        outcome = Interrupted("stopped") if interrupted else Unreachable("no connection")
        decision = decide(outcome, schedule=schedule, attempts=attempts, failures=failures, now=NOW, jitter=1.0)
        attempts += 1
        failures += decision.spends_retry
        if decision.transition is Transition.EXHAUST:
            break
    assert failures == len(schedule) + 1
    assert attempts == failures + sum(interruptions[-attempts:])


def test_the_default_schedule_lasts_three_days_and_ten_attempts() -> None:
    assert len(DEFAULT_RETRY_SCHEDULE) == 9
    assert timedelta(days=3) < timedelta(seconds=sum(DEFAULT_RETRY_SCHEDULE)) < timedelta(days=4)


# How long it waits.


@pytest.mark.parametrize(("failures", "delay"), list(enumerate(SCHEDULE)))
@pytest.mark.parametrize("outcome", [Responded(500), Unreachable("no connection"), Blocked("loopback")], ids=repr)
def test_jitter_stretches_a_delay_by_a_fifth_at_most_either_way(outcome: Outcome, failures: int, delay: float) -> None:
    assert wait_after(outcome, failures=failures, jitter=-1.0) == timedelta(seconds=delay * 0.8)
    assert wait_after(outcome, failures=failures, jitter=1.0) == timedelta(seconds=delay * 1.2)


@given(st.floats(-1, 1))
def test_every_jitter_stays_within_the_bounds(jitter: float) -> None:
    wait = wait_after(Responded(503), failures=1, jitter=jitter).total_seconds()
    assert 300 * (1 - JITTER) <= wait <= 300 * (1 + JITTER)


@pytest.mark.parametrize("status", [301, 400, 429, 500, 503])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("120", timedelta(seconds=120)),
        (" 120 ", timedelta(seconds=120)),
        ("1", SECOND),
        ("0", SECOND),
        ("86399", DAY - SECOND),
        ("86400", DAY),
        ("86401", DAY),
        ("9" * 11, DAY),
        ("9" * 5000, DAY),
        (format_datetime(NOW + timedelta(hours=2), usegmt=True), timedelta(hours=2)),
        ("Sunday, 22-Nov-26 12:00:30 GMT", timedelta(seconds=30)),
        ("Sun Nov 22 12:00:30 2026", timedelta(seconds=30)),
        ("Sun, 22 Nov 2026 14:00:30 +0200", timedelta(seconds=30)),
        ("Sun, 22 Nov 2026 12:00:30 -0000", timedelta(seconds=30)),
        (format_datetime(NOW - timedelta(days=9000), usegmt=True), SECOND),
        (format_datetime(NOW + timedelta(days=9000), usegmt=True), DAY),
    ],
)
def test_retry_after_is_honoured_between_a_second_and_a_day(status: int, value: str, expected: timedelta) -> None:
    outcome = Responded(status, {"retry-after": value})
    # It is what the receiver asked for, so no jitter stretches it.
    assert wait_after(outcome, failures=1, jitter=1.0) == expected


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "-5",
        "+5",
        "5.5",
        "1e3",
        "soon",
        "٣٠",
        "²",
        "0x10",
        "120, 60",
        "NaN",
        "Sun, 99 Nov 2026 12:00:30 GMT",
        "Sun, 22 Nov 2026 99:00:30 GMT",
        "Sun, 22 Nov 2026 12:00:30 +9999",
        "22 Nov 2026 12:28999999999999999999999999:00 GMT",
        "22 Nov 99999999999999999999 12:00 GMT",
    ],
)
def test_a_retry_after_that_cannot_be_read_counts_as_absent(value: str) -> None:
    assert read_retry_after(value, NOW) is None
    assert wait_after(Responded(503, {"retry-after": value}), failures=1) == timedelta(seconds=300)


def test_retry_after_does_not_prolong_the_schedule() -> None:
    outcome = Responded(429, {"retry-after": "60"})
    assert decide_on(outcome, failures=len(SCHEDULE)).transition is Transition.EXHAUST


DATE_PARTS = st.sampled_from(
    [*"0123456789 ,:-+.", "GMT", "Sun", "22", "Nov", "2026", "12:00:30", "+0000", "-0000", "9" * 25, "\x00", "é"]
)


@given(st.text() | st.lists(DATE_PARTS, max_size=14).map("".join), st.datetimes(timezones=st.just(UTC)))
@example("21 Oct 2015 073:28999999999999999999999999:00 999", NOW)
def test_whatever_retry_after_holds_the_wait_stays_within_its_limits(value: str, now: datetime) -> None:
    asked = read_retry_after(value, now)
    assert asked is None or SECOND <= asked <= DAY
