"""Deliveries follow the status of their endpoint, in parts: however many they are, nobody waits for all of them.

The law: an endpoint whose deliveries are not where its status has them is marked, `lanes.unsettled_since`. The mark is
set in the transaction that changes the status, from whose commit on nothing more is claimed or accepted by the old one.
It is taken away under the endpoint's lock, where one statement begun under that lock finds no delivery out of place:
results go on being recorded meanwhile, and what goes from one stretch to another between two looks is in neither. So
whoever settles next, after a crash or on another machine, goes on by the status that the endpoint then has.

A part locks the endpoint, and nothing of the organization, which goes on accepting meanwhile. Nobody shares that lock:
were there always another part that did, whoever changes the status would never come to their turn. It waits for no
delivery; those that are locked are left to a later part. Deliveries of a deleted endpoint are cancelled without its
lane: what they kept back in an order is cancelled as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from carehook.ledger.connections.sessions import Session
from carehook.ledger.sql.statements import Prepared
from carehook.ledger.sql.tables import STRETCHES, deliveries, endpoints, lanes
from carehook.ledger.states import TRANSITIONS, DeliveryState, EndpointStatus, Transition, is_final, states_before

PART: Final = 5_000
"""Deliveries in a part at most."""

_MOVES: Final[Mapping[EndpointStatus, Transition]] = {
    EndpointStatus.ACTIVE: Transition.RELEASE,
    EndpointStatus.PAUSED: Transition.HOLD,
    EndpointStatus.DISABLED: Transition.HOLD,
    EndpointStatus.DELETED: Transition.CANCEL,
}
"""What happens to the deliveries of an endpoint that has this status, in each state where it can happen."""


@dataclass(frozen=True, slots=True)
class Part:
    """How many deliveries followed their endpoint's status, whether there may be more, and whether it receives."""

    moved: int
    is_full: bool
    is_active: bool


@dataclass(frozen=True, slots=True)
class _OutOfPlace:
    """The statements for the deliveries that are not where a status has them."""

    moves: Sequence[Mapping[str, Prepared]]
    """Move some of each stretch, by dialect."""
    find: Prepared
    """Find one of each stretch, all as they are at the same moment."""


def _find_first(rows: sa.ColumnElement[bool], order: Sequence[sa.Column[Any]]) -> sa.Select[Any]:
    # In the order of their index, so that it is used whatever the statistics say of a table that just was empty.
    chosen = sa.select(deliveries.c.id).where(rows, deliveries.c.endpoint_id == sa.bindparam("endpoint"))
    return chosen.order_by(*order)


def _build_move(
    transition: Transition, state: DeliveryState, rows: sa.ColumnElement[bool], order: Sequence[sa.Column[Any]]
) -> Mapping[str, Prepared]:
    first = _find_first(rows, order).limit(sa.bindparam("most"))
    after = TRANSITIONS[state][transition]
    values: dict[str, Any] = {"state": after}
    if is_final(after):
        values |= {"due_at": sa.null(), "finished_at": sa.bindparam("now")}
    locked = first.with_for_update(key_share=True, skip_locked=True).scalar_subquery()
    chosen: Mapping[str, sa.ColumnElement[bool]] = {
        "sqlite": deliveries.c.id.in_(first),
        # An array is made once; a subquery that a plan ran again would find others meanwhile.
        "postgresql": deliveries.c.id == sa.any_(sa.func.array(locked)),
    }
    one = sa.literal_column("1", sa.Integer)
    return {
        dialect: Prepared(deliveries.update().where(which).values(values).returning(one))
        for dialect, which in chosen.items()
    }


def _build_out_of_place(transition: Transition) -> _OutOfPlace:
    stretches = [(state, *stretch) for state in sorted(states_before(transition)) for stretch in STRETCHES[state]]
    firsts = [_find_first(rows, order).limit(1).scalar_subquery() for _, rows, order in stretches]
    return _OutOfPlace([_build_move(transition, *stretch) for stretch in stretches], Prepared(sa.select(*firsts)))


_OUT_OF_PLACE: Final[Mapping[EndpointStatus, _OutOfPlace]] = {
    status: _build_out_of_place(transition) for status, transition in _MOVES.items()
}

_status = sa.select(endpoints.c.status).where(endpoints.c.id == sa.bindparam("endpoint"))
_LOCK_STATUS = Prepared(_status.with_for_update(key_share=True))
_TRY_STATUS = Prepared(_status.with_for_update(key_share=True, skip_locked=True))
_TAKE_MARK_AWAY = Prepared(
    lanes.update()
    .where(lanes.c.endpoint_id == sa.bindparam("endpoint"), lanes.c.unsettled_since.is_not(None))
    .values(unsettled_since=sa.null())
)
UNSETTLED: Final = (
    sa.select(lanes.c.endpoint_id).where(lanes.c.unsettled_since.is_not(None)).order_by(lanes.c.unsettled_since)
)
"""The endpoints that are marked, the longest first."""


def move_part(session: Session, endpoint_id: str, now: datetime, *, waits: bool) -> Part | None:
    """Move some of an endpoint's deliveries to where its status has them.

    None where another transaction has the endpoint, unless it `waits` for that.
    """
    status = _lock_status(session, endpoint_id, waits=waits)
    if status is None:
        return None
    moved = 0
    for move in _OUT_OF_PLACE[status].moves:
        statement = move[session.dialect.name]
        moved += len(statement.fetch(session, endpoint=endpoint_id, most=PART - moved, now=now))
    return Part(moved, moved >= PART, status is EndpointStatus.ACTIVE)


def conclude(session: Session, endpoint_id: str, *, waits: bool) -> bool:
    """Take the mark away where all deliveries are in their place; whether they are. Those that are locked count too.

    False as well where another transaction has the endpoint, unless it `waits` for that.

    In a transaction of its own: a part, even one that moved nothing, may have locked deliveries that it then found
    changed, and lanes are locked before deliveries.
    """
    status = _lock_status(session, endpoint_id, waits=waits)
    if status is None:
        return False
    [found] = _OUT_OF_PLACE[status].find.fetch(session, endpoint=endpoint_id)
    if any(found):
        return False
    _TAKE_MARK_AWAY.fetch(session, endpoint=endpoint_id)
    return True


def _lock_status(session: Session, endpoint_id: str, *, waits: bool) -> EndpointStatus | None:
    rows = (_LOCK_STATUS if waits else _TRY_STATUS).fetch(session, endpoint=endpoint_id)
    return EndpointStatus(rows[0][0]) if rows else None
