"""Whether and when a delivery is attempted again: a pure decision, which the worker then applies.

Success is 2xx. 410 says that the endpoint is gone and disables it (Standard Webhooks, "Delivery"). `Retry-After`
(RFC 9110 §10.2.3) is honoured between 1 second and 24 hours. Everything else goes by the schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

from carehook.exchange import Interrupted, Outcome, Responded
from carehook.ledger.states import Transition

JITTER: Final = 0.2
"""A delay of the schedule is stretched or shortened by at most this share of it, so that failures part."""

SHORTEST_RETRY_AFTER: Final = timedelta(seconds=1)
LONGEST_RETRY_AFTER: Final = timedelta(hours=24)

GONE: Final = "the endpoint answered 410 Gone"

_INTERRUPTED_STEPS: Final = 2


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a delivery. `due_at` is set where it is attempted again."""

    transition: Transition
    due_at: datetime | None = None
    spends_retry: bool = True
    disable_reason: str | None = None


def decide(
    outcome: Outcome,
    *,
    schedule: Sequence[float],
    attempts: int,
    failures: int,
    now: datetime,
    jitter: float,
) -> Decision:
    """Decide what follows `outcome`.

    `schedule` holds the seconds before each retry, at least one. `attempts` counts all earlier attempts, `failures`
    those that spent a retry since the schedule began. `jitter` lies between -1 and 1.
    """
    if isinstance(outcome, Interrupted):
        # Not the receiver's doing: it loses no retry, and waits no longer than for its second.
        step = min(attempts, _INTERRUPTED_STEPS - 1, len(schedule) - 1)
        return Decision(Transition.RESCHEDULE, now + _stretch(schedule[step], jitter), spends_retry=False)
    if isinstance(outcome, Responded):
        if outcome.is_success:
            return Decision(Transition.SUCCEED, spends_retry=False)
        if outcome.status == HTTPStatus.GONE:
            return Decision(Transition.RESCHEDULE, now, spends_retry=False, disable_reason=GONE)
    if failures >= len(schedule):
        return Decision(Transition.EXHAUST)
    asked = read_retry_after(outcome.headers.get("retry-after"), now) if isinstance(outcome, Responded) else None
    return Decision(Transition.RESCHEDULE, now + (asked or _stretch(schedule[failures], jitter)))


def read_retry_after(value: str | None, now: datetime) -> timedelta | None:
    """The delay that a `Retry-After` asks for, within what is honoured; None where there is none that can be read."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        delay = timedelta(seconds=min(int(value[:12]), LONGEST_RETRY_AFTER.total_seconds()))
    else:
        try:
            at = parsedate_to_datetime(value)
        except (ValueError, OverflowError):  # numbers without end in a date raise the latter
            return None
        delay = (at if at.tzinfo else at.replace(tzinfo=UTC)) - now
    return min(max(delay, SHORTEST_RETRY_AFTER), LONGEST_RETRY_AFTER)


def _stretch(seconds: float, jitter: float) -> timedelta:
    return timedelta(seconds=seconds * (1 + JITTER * jitter))
