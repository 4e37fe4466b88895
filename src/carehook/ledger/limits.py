"""How many of an endpoint's deliveries may be leased now, by the limits that all workers keep together. Pure.

The rate is kept by the generic cell rate algorithm (ITU-T I.371, annex A): requests are due at even intervals, and at
most `TOLERANCE` worth of them go at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from carehook.ledger.records import Lane

TOLERANCE: Final = timedelta(milliseconds=100)

_ROUNDING: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Limited:
    """An endpoint whose leases are limited: what limits them, how it goes there, how many leases it has.

    `next_slot_at` is when the next request would be due if they came at even intervals.
    """

    endpoint_id: str
    max_in_flight: int | None
    rate_limit: float | None
    lane: Lane
    next_slot_at: datetime | None
    in_flight: int


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many may be leased, and when to ask again where the limits and not the backlog decided; None: no telling."""

    room: int
    ask_again_at: datetime | None = None


def decide_allowance(limited: Limited, room: int, now: datetime) -> Allowance:
    """How many of at most `room` deliveries may be leased now."""
    if limited.lane.opened_at is not None:
        return _probe(limited, now)
    if limited.max_in_flight is not None:
        room = min(room, limited.max_in_flight - limited.in_flight)
    if limited.rate_limit is None or room <= 0:
        return Allowance(max(0, room))
    return _pace(limited.rate_limit, limited.next_slot_at, room, now)


def advance_slot(limited: Limited, leased: int, now: datetime) -> datetime | None:
    """The `next_slot_at` once `leased` more requests are on their way."""
    if limited.rate_limit is None or not leased:
        return limited.next_slot_at
    ahead = _measure_ahead(limited.rate_limit, limited.next_slot_at, now)
    # The probe of an open circuit is let through whatever the rate.
    return now + min(ahead + _measure_span(leased, limited.rate_limit), _measure_most_ahead(limited.rate_limit))


def _probe(limited: Limited, now: datetime) -> Allowance:
    probe_at = limited.lane.probe_at
    if probe_at is not None and now < probe_at:
        return Allowance(0, probe_at)
    return Allowance(0 if limited.in_flight else 1)


def _pace(rate_limit: float, next_slot_at: datetime | None, room: int, now: datetime) -> Allowance:
    ahead = _measure_ahead(rate_limit, next_slot_at, now)
    spare = (TOLERANCE - ahead).total_seconds()
    conforming = math.floor(spare * rate_limit) + 1 if spare >= 0 else 0
    if room <= conforming:
        return Allowance(room)
    next_slot_at = now + ahead + _measure_span(conforming, rate_limit)
    # Not for each one as soon as it conforms, where they are many a second, but for some of them together.
    return Allowance(conforming, next_slot_at - TOLERANCE / 2)


def _measure_ahead(rate_limit: float, next_slot_at: datetime | None, now: datetime) -> timedelta:
    """How far the requests are ahead of their even intervals."""
    if next_slot_at is None or not now < next_slot_at <= now + _measure_most_ahead(rate_limit) + _ROUNDING:
        # Beyond is what a lower limit left, or a clock that was set back.
        return timedelta(0)
    return next_slot_at - now


def _measure_most_ahead(rate_limit: float) -> timedelta:
    return TOLERANCE + _measure_span(1, rate_limit)


def _measure_span(requests: int, rate_limit: float) -> timedelta:
    """How long so many requests take at this rate."""
    return timedelta(seconds=requests / rate_limit)
