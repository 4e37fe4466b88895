"""What waits behind another delivery of its patient is parked: no claim looks at it again before it is its turn.

A claim that meets such a delivery takes its `due_at` away; so each is looked at once, however long the backlog is.

Laws:
- A delivery that is not finished and has no `due_at` is kept back by another of its order: by one before it that
  `holds_back`, or, where that was sent again meanwhile, by one after it that is in flight.
- Whoever parks, and whoever ends what keeps others back (a result, a cancellation, the end of a lease), has locked the
  lane of the endpoint first, reads only under that lock, and keeps it until the commit. So nothing is parked behind
  what is just ending, and whoever ends it finds what was parked.
- Whoever ends it brings forward the first of that order that is still to come, where that is parked.
- Whoever accepts takes no part, and waits for no lane; nor need whoever sends again. They add to what keeps others
  back, and take nothing away, and nothing is accepted before what is there already.
- Of a deleted endpoint all is cancelled, in parts, whatever is parked behind what.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from carehook.ledger.connections.sessions import Row, Session
from carehook.ledger.sql.queue_statements import LEASE_THESE
from carehook.ledger.sql.statements import Ids, Prepared, among
from carehook.ledger.sql.tables import LEASED, WAITING, deliveries, endpoints, holds_back
from carehook.ledger.states import EndpointStatus

LOOKED_AT: Final = 1000
"""Due deliveries that a claim looks at, at all its ordered endpoints together, beside those that there is room for."""

_ids = sa.bindparam("ids", type_=Ids())
_one: sa.ColumnElement[int] = sa.literal_column("1")


def _build_look(dialect: str) -> sa.Select[Any]:
    """The first `most` due deliveries of each endpoint, and whether one before them holds them back."""
    of = deliveries.c
    first_due = (
        sa.select(of.id)
        .where(WAITING, of.endpoint_id == endpoints.c.id, of.due_at <= sa.bindparam("now"))
        .order_by(of.due_at)
        .limit(sa.bindparam("most"))
    )
    due: sa.FromClause = deliveries
    found = endpoints.join(due, of.id.in_(first_due.correlate(endpoints)))
    if dialect == "postgresql":
        # What another transaction has locked is passed over.
        with_order = first_due.add_columns(of.due_at, of.endpoint_id, of.order_key, of.position)
        due = with_order.with_for_update(skip_locked=True, key_share=True).lateral("due")
        found = endpoints.join(due, sa.true())
    earlier = deliveries.alias("earlier")
    is_held_back = (
        sa.select(_one)
        .where(_is_beside(earlier, due), earlier.c.position < due.c.position, holds_back(earlier))
        .correlate(due)
        .exists()
    )
    return (
        sa.select(due.c.due_at, due.c.id, due.c.endpoint_id, due.c.order_key, is_held_back)
        .select_from(found)
        .where(among(endpoints.c.id, _ids), endpoints.c.status == EndpointStatus.ACTIVE)
    )


def _is_beside(other: sa.FromClause, delivery: sa.FromClause) -> sa.ColumnElement[bool]:
    return (other.c.endpoint_id == delivery.c.endpoint_id) & (other.c.order_key == delivery.c.order_key)


_LOOK = {dialect: Prepared(_build_look(dialect)) for dialect in ("sqlite", "postgresql")}
_IN_FLIGHT = Prepared(
    sa.select(deliveries.c.endpoint_id, deliveries.c.order_key).where(
        LEASED, among(deliveries.c.endpoint_id, _ids), deliveries.c.order_key.is_not(None)
    )
)
_PARK = Prepared(deliveries.update().where(among(deliveries.c.id, _ids)).values(due_at=sa.null()))

_over, _next = deliveries.alias("over"), deliveries.alias("next")
_in_order = among(_over.c.id, _ids) & _over.c.order_key.is_not(None)


def _build_first(*where: sa.ColumnElement[bool]) -> sa.ScalarSelect[str]:
    """The first delivery in the order of one that is not over."""
    first = sa.select(_next.c.id).where(_is_beside(_next, _over), holds_back(_next), *where)
    return (
        first.order_by(_next.c.position).limit(_one).offset(sa.literal_column("0")).correlate(_over).scalar_subquery()
    )


_FIND_NEXT = Prepared(sa.select(_over.c.id, _build_first(~among(_next.c.id, _ids))).where(_in_order))
_firsts = sa.select(_build_first()).where(_in_order)
_is_first = {
    "sqlite": deliveries.c.id.in_(_firsts),
    "postgresql": deliveries.c.id == sa.any_(sa.func.array(_firsts.scalar_subquery())),
}
_BRING_FORWARD = {
    dialect: Prepared(
        deliveries.update()
        # Once more, for it may have been cancelled while it was waited for.
        .where(is_first, holds_back(deliveries), deliveries.c.due_at.is_(None), deliveries.c.lease_until.is_(None))
        .values(due_at=deliveries.c.created_at)
    )
    for dialect, is_first in _is_first.items()
}


@dataclass(frozen=True, slots=True)
class LeasedInOrder:
    """The rows that were leased, and the endpoints of which more is due than could be looked at."""

    rows: Sequence[Row]
    perhaps_more: frozenset[str]


class _Due(NamedTuple):
    due_at: datetime
    id: str
    endpoint_id: str
    order_key: str | None
    is_held_back: bool


@dataclass(slots=True)
class _Look:
    """How many an endpoint has room for, how many deliveries are looked at next, and how many more at most."""

    room: int
    size: int
    left: int

    def go_on(self, looked_at: int) -> bool:
        """Whether to look at more: at twice as many each time, so that few looks do and few rows are read in vain."""
        is_more_due = looked_at == self.size
        self.left -= looked_at
        self.size = min(2 * self.size, self.left)
        return is_more_due and self.room > 0


def lease_in_order(session: Session, rooms: Mapping[str, int], now: datetime, until: datetime) -> LeasedInOrder:
    """Lease due deliveries of ordered endpoints, of each at most as many as it has room for, and park what waits.

    The lanes of the endpoints are locked.
    """
    looks = {endpoint_id: _Look(room, room, room + LOOKED_AT // len(rooms)) for endpoint_id, room in rooms.items()}
    in_flight: set[tuple[str, str | None]] = set(_IN_FLIGHT.fetch(session, ids=rooms)) if rooms else set()
    leased: list[Row] = []
    perhaps_more: set[str] = set()
    while looks:
        found = _fetch_due(session, looks, now)
        to_lease, to_park = _sort_out(found, looks, in_flight)
        if to_lease:
            leased += LEASE_THESE.fetch(session, ids=to_lease, now=now, until=until)
        if to_park:
            _PARK.fetch(session, ids=to_park)
        looked_at = Counter(each.endpoint_id for each in found)
        unfilled = {endpoint_id: look for endpoint_id, look in looks.items() if look.go_on(looked_at[endpoint_id])}
        looks = {endpoint_id: look for endpoint_id, look in unfilled.items() if look.size}
        perhaps_more |= unfilled.keys() - looks.keys()
    return LeasedInOrder(leased, frozenset(perhaps_more))


def _fetch_due(session: Session, looks: Mapping[str, _Look], now: datetime) -> Sequence[_Due]:
    """The first that are due at each endpoint, as many as are looked at, the longest due first."""
    endpoints_by_size: defaultdict[int, list[str]] = defaultdict(list)
    for endpoint_id, look in looks.items():
        endpoints_by_size[look.size].append(endpoint_id)
    statement = _LOOK[session.dialect.name]
    return sorted(
        _Due(*row)
        for size, endpoint_ids in endpoints_by_size.items()
        for row in statement.fetch(session, ids=endpoint_ids, most=size, now=now)
    )


def _sort_out(
    found: Sequence[_Due], looks: Mapping[str, _Look], in_flight: set[tuple[str, str | None]]
) -> tuple[list[str], list[str]]:
    """Which to lease, as there is room for them, and which to park."""
    to_lease, to_park = [], []
    for each in found:
        order = (each.endpoint_id, each.order_key)
        if each.is_held_back or order in in_flight:
            to_park.append(each.id)
        elif looks[each.endpoint_id].room:
            looks[each.endpoint_id].room -= 1
            to_lease.append(each.id)
            if each.order_key is not None:
                in_flight.add(order)
    return to_lease, to_park


def find_next(session: Session, delivery_ids: Collection[str]) -> Mapping[str, str | None]:
    """Those of the deliveries that are in an order, each with the first of it that is to come once they are all over.

    The lanes of their endpoints are locked. What is found is locked with the deliveries, in the order of the ids, and
    once they are over, or their leases are, `bring_forward` is called.
    """
    return dict(_FIND_NEXT.fetch(session, ids=delivery_ids))


def bring_forward(session: Session, delivery_ids: Collection[str]) -> None:
    """Let the first that is still to come in the order of each of the deliveries go on, where it is parked."""
    if delivery_ids:
        _BRING_FORWARD[session.dialect.name].fetch(session, ids=delivery_ids)
