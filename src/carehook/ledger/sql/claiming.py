"""Leasing due deliveries within a session, by the limits and the order that all workers keep together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from carehook.ledger.connections.sessions import Row, Session
from carehook.ledger.limits import Allowance, Limited, advance_slot, decide_allowance
from carehook.ledger.records import ClaimedDelivery, Endpoint, Lane
from carehook.ledger.sql.directory import build_endpoint
from carehook.ledger.sql.parking import lease_in_order
from carehook.ledger.sql.queue_statements import (
    CANDIDATES,
    ENDPOINTS_OF,
    EVENTS_OF,
    IN_FLIGHT,
    LEASE,
    SET_SLOT,
    TRY_LANES,
)
from carehook.ledger.states import Ordering

_TRY_AGAIN_AFTER: Final = timedelta(milliseconds=20)
"""When to come back to an endpoint whose lane another transaction has locked just now."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What was leased, first due first, and what there is to know of the endpoints that were looked at."""

    deliveries: Sequence[ClaimedDelivery] = ()
    perhaps_more: Sequence[str] = ()
    """Endpoints of which as much was leased as was asked for, or of which more is due than could be looked at."""
    ask_again: Mapping[str, datetime] = field(default_factory=dict)
    """Endpoints whose limits kept some back, and until when."""
    constrained: frozenset[str] = frozenset()
    """Endpoints that may have something more to lease once one of their attempts has ended."""


@dataclass(frozen=True, slots=True)
class _Allowances:
    """How many may be leased of each endpoint; which are limited, under whose locked lanes; and which are in order."""

    rooms: Mapping[str, Allowance]
    limited: Sequence[Limited]
    ordered: frozenset[str]

    def find_rooms(self, *, in_order: bool) -> dict[str, int]:
        """The endpoints of which any may be leased, with how many."""
        return {
            endpoint_id: allowance.room
            for endpoint_id, allowance in self.rooms.items()
            if allowance.room and (endpoint_id in self.ordered) is in_order
        }


def claim(session: Session, asked: Mapping[str, int], now: datetime, until: datetime) -> Claim:
    """Lease due deliveries of endpoints, of each at most as many as is `asked`."""
    allowances = _decide_allowances(session, asked, now)
    in_order = lease_in_order(session, allowances.find_rooms(in_order=True), now, until)
    leased = [*_lease(session, allowances.find_rooms(in_order=False), now, until), *in_order.rows]
    deliveries = load_claimed(session, leased, until)
    counts = _count(deliveries)
    SET_SLOT.run(
        session,
        [
            (each.endpoint_id, advance_slot(each, counts[each.endpoint_id], now))
            for each in allowances.limited
            if each.rate_limit is not None and counts[each.endpoint_id]
        ],
    )
    filled = [
        endpoint_id
        for endpoint_id, allowance in allowances.rooms.items()
        if allowance.room and counts[endpoint_id] >= allowance.room and allowance.ask_again_at is None
    ]
    return Claim(
        deliveries=deliveries,
        perhaps_more=[*filled, *in_order.perhaps_more],
        ask_again={
            endpoint_id: allowance.ask_again_at
            for endpoint_id, allowance in allowances.rooms.items()
            if allowance.ask_again_at is not None
        },
        constrained=frozenset(each.endpoint_id for each in allowances.limited),
    )


def _decide_allowances(session: Session, asked: Mapping[str, int], now: datetime) -> _Allowances:
    rooms: dict[str, Allowance] = {}
    to_limit: dict[str, tuple[int | None, float | None]] = {}
    ordered: set[str] = set()
    for endpoint_id, max_in_flight, rate_limit, ordering, opened_at in CANDIDATES.fetch(session, ids=asked):
        if ordering != Ordering.NONE:
            ordered.add(endpoint_id)
        elif max_in_flight is None and rate_limit is None and opened_at is None:
            rooms[endpoint_id] = Allowance(asked[endpoint_id])
            continue
        rooms[endpoint_id] = Allowance(0, now + _TRY_AGAIN_AFTER)
        to_limit[endpoint_id] = (max_in_flight, rate_limit)
    limited = _lock_limited(session, to_limit) if to_limit else []
    for each in limited:
        rooms[each.endpoint_id] = decide_allowance(each, asked[each.endpoint_id], now)
    return _Allowances(rooms, limited, frozenset(ordered))


def _lock_limited(session: Session, to_limit: Mapping[str, tuple[int | None, float | None]]) -> Sequence[Limited]:
    """Those at whose lanes no other transaction is now. Their leases are counted once their lanes are locked."""
    lanes = {
        endpoint_id: (next_slot_at, Lane(*rest))
        for endpoint_id, next_slot_at, *rest in TRY_LANES.fetch(session, ids=to_limit)
    }
    in_flight: dict[str, int] = dict(IN_FLIGHT.fetch(session, ids=lanes))
    return [
        Limited(endpoint_id, *to_limit[endpoint_id], lane, next_slot_at, in_flight.get(endpoint_id, 0))
        for endpoint_id, (next_slot_at, lane) in lanes.items()
    ]


def _lease(session: Session, rooms: Mapping[str, int], now: datetime, until: datetime) -> Sequence[Row]:
    endpoints_by_room: defaultdict[int, list[str]] = defaultdict(list)
    for endpoint_id, room in rooms.items():
        endpoints_by_room[room].append(endpoint_id)
    statement = LEASE[session.dialect.name]
    return [
        row
        for room, endpoint_ids in endpoints_by_room.items()
        for row in statement.fetch(session, ids=endpoint_ids, share=room, now=now, until=until)
    ]


def load_claimed(session: Session, leased: Sequence[Row], until: datetime) -> Sequence[ClaimedDelivery]:
    """The leased deliveries, first due first, with their events' bodies and their endpoints.

    Without those whose event is not there: their leases run out, and `finishing` sees to them then.
    """
    if not leased:
        return []
    accepted = {
        event_id: (accepted_at, body)
        for event_id, accepted_at, body in EVENTS_OF.fetch(session, ids={row[5] for row in leased})
    }
    present = ENDPOINTS_OF.fetch(session, ids={row[7] for row in leased})
    endpoint_of: dict[str, Endpoint] = {endpoint.id: endpoint for endpoint in map(build_endpoint, present)}
    return [
        ClaimedDelivery(
            id=delivery_id,
            lease_token=lease_token,
            lease_until=until,
            attempt_count=attempt_count,
            failure_count=failure_count,
            event_id=event_id,
            event_type=event_type,
            accepted_at=accepted[event_id][0],
            body=accepted[event_id][1],
            endpoint=endpoint_of[endpoint_id],
        )
        for _, delivery_id, lease_token, attempt_count, failure_count, event_id, event_type, endpoint_id in sorted(
            leased
        )
        if event_id in accepted
    ]


def _count(deliveries: Sequence[ClaimedDelivery]) -> Mapping[str, int]:
    counts: defaultdict[str, int] = defaultdict(int)
    for delivery in deliveries:
        counts[delivery.endpoint.id] += 1
    return counts
