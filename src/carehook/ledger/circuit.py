"""The circuit breaker of an endpoint: pure decisions about its lane.

After `OPENS_AT` failures without a success between them the circuit opens: deliveries wait, without spending attempts,
and one request at a time is let through, at growing intervals, until one succeeds. That closes it. An endpoint where
nothing has succeeded for `DISABLED_AFTER`, and whose circuit was tried for `TRIED_FOR`, is disabled until somebody
resumes it.

An open circuit is tried only while a delivery waits. One that was not tried for so long, since there was nothing to
send or no Carehook that sends, opens anew with the next failure: days on which nobody asked do not count against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from carehook.ledger.records import Lane

OPENS_AT: Final = 10
"""Failures in a row that open a circuit."""

FIRST_PROBE_AFTER: Final = timedelta(seconds=10)
LONGEST_PROBE_AFTER: Final = timedelta(minutes=5)
"""How long an open circuit waits before it lets one request through: at first, and at most; it doubles each time."""

DISABLED_AFTER: Final = timedelta(days=5)
"""For how long nothing but failure is borne."""

TRIED_FOR: Final = timedelta(days=1)
"""For how long an open circuit is tried before its endpoint is disabled, at least that often."""

CLEAN: Final = Lane()

_JITTER: Final = 0.2


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that failed by the endpoint's doing: when it was begun, and why, for people."""

    started_at: datetime
    reason: str | None


@dataclass(frozen=True, slots=True)
class Tally:
    """What attempts at an endpoint came to: whether any succeeded, and the failures after the last that did."""

    succeeded: bool
    failures: Sequence[Failure]


def record(lane: Lane, tally: Tally, now: datetime, jitter: float) -> Lane:
    """The lane after these attempts. `jitter` lies between -1 and 1, and spreads the probes of many endpoints."""
    if tally.succeeded:
        lane = CLEAN
    if not tally.failures:
        return lane
    first, last = tally.failures[0], tally.failures[-1]
    latest_start = max(each.started_at for each in tally.failures)
    failing = replace(
        lane,
        failure_streak=lane.failure_streak + len(tally.failures),
        failing_since=lane.failing_since or first.started_at,
        last_failure=last.reason,
    )
    if failing.failure_streak < OPENS_AT:
        return failing
    if lane.opened_at is None or lane.probe_at is None or latest_start - lane.probe_at >= TRIED_FOR:
        return replace(failing, opened_at=now, probe_at=now + _wait(0, jitter), probes=0)
    if latest_start < lane.probe_at:
        # They were in flight when the circuit opened; the probe is still to come.
        return failing
    return replace(failing, probe_at=now + _wait(lane.probes + 1, jitter), probes=lane.probes + 1)


def decide_disabling(lane: Lane, now: datetime) -> str | None:
    """Why an endpoint is to be disabled, for people; None while it is not."""
    since, opened_at = lane.failing_since, lane.opened_at
    if since is None or opened_at is None or now - since < DISABLED_AFTER or now - opened_at < TRIED_FOR:
        return None
    return f"every attempt since {since:%Y-%m-%dT%H:%M:%SZ} failed; of the last one: {lane.last_failure or 'unknown'}"


def _wait(probes: int, jitter: float) -> timedelta:
    # Doubled no more often than is needed to reach the longest.
    doubled = FIRST_PROBE_AFTER * (1 << min(probes, 10))
    return min(doubled, LONGEST_PROBE_AFTER) * (1 + _JITTER * jitter)
