"""Deliveries outside of the queue: what people see of them and do to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from carehook.ledger.connections.sessions import Session, SessionSqlalchemy
from carehook.ledger.records import (
    Attempt,
    AttemptOutcome,
    Backlog,
    Delivery,
    DeliveryFilter,
    NewDelivery,
    Page,
    PageRequest,
    Prospect,
)
from carehook.ledger.sql.backlog import BACKLOG
from carehook.ledger.sql.order import assign_positions
from carehook.ledger.sql.parking import bring_forward, find_next
from carehook.ledger.sql.prospects import fetch_prospects
from carehook.ledger.sql.queue_statements import LOCK_LANES, LOCK_LEASED
from carehook.ledger.sql.references import check_deliveries
from carehook.ledger.sql.statements import Bulk, Prepared, among, build_move, fetch_page
from carehook.ledger.sql.tables import (
    STRETCHES,
    UNFINISHED_STATES,
    attempts,
    deliveries,
    endpoints,
    lanes,
)
from carehook.ledger.states import DeliveryState, EndpointStatus, Ordering, Transition

_delivery_columns = [deliveries.c[field.name] for field in dataclasses.fields(Delivery)]


def _build_delivery(row: sa.Row[tuple[object, ...]]) -> Delivery:
    fields = dict(row._mapping)
    fields["state"] = DeliveryState(fields["state"])
    return Delivery(**fields)


def _build_attempt(row: sa.Row[tuple[object, ...]]) -> Attempt:
    fields = dict(row._mapping)
    fields["outcome"] = AttemptOutcome(fields["outcome"])
    return Attempt(**fields)


_NEW_DELIVERY_NAMES = [field.name for field in dataclasses.fields(NewDelivery)]
ADD_DELIVERIES = Bulk(deliveries.insert(), [*_NEW_DELIVERY_NAMES, "due_at", "position"])
# `.value`: the driver is slow to see that a member of an enumeration is a string.
_take_new_delivery = attrgetter(
    *(f"{name}.value" if name == "state" else name for name in _NEW_DELIVERY_NAMES), "created_at"
)


def take_delivery(delivery: NewDelivery, position: int | None) -> tuple[object, ...]:
    """The row for `ADD_DELIVERIES`, with its place in the order of its endpoint if it has one."""
    return (*_take_new_delivery(delivery), position)


class DeliveriesSql:
    """See `port.Deliveries`. `on_due` is told the endpoints for which a method made something due."""

    def __init__(self, connection: AsyncConnection, on_due: Callable[[Collection[str]], None]) -> None:
        self._connection = connection
        self._on_due = on_due

    async def add(self, new: Sequence[NewDelivery]) -> None:
        """Store new deliveries."""
        await check_deliveries(self._connection, new)
        positions = await self._connection.run_sync(
            lambda connection: assign_positions(SessionSqlalchemy(connection), new)
        )
        rows = [take_delivery(delivery, position) for delivery, position in zip(new, positions, strict=True)]
        await ADD_DELIVERIES.execute(self._connection, rows)
        self._on_due({delivery.endpoint_id for delivery in new})

    async def get(self, delivery_id: str) -> Delivery | None:
        """One delivery."""
        query = sa.select(*_delivery_columns).where(deliveries.c.id == delivery_id)
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else _build_delivery(row)

    async def of_event(self, event_id: str) -> Sequence[Delivery]:
        """The deliveries of an event."""
        query = sa.select(*_delivery_columns).where(deliveries.c.event_id == event_id)
        rows = await self._connection.execute(query.order_by(deliveries.c.id))
        return [_build_delivery(row) for row in rows]

    async def page(self, organization_id: str, only: DeliveryFilter, request: PageRequest) -> Page[Delivery]:
        """A page of an organization's deliveries."""
        query = sa.select(*_delivery_columns).where(deliveries.c.organization_id == organization_id)
        for name, value in dataclasses.asdict(only).items():
            if value is not None:
                query = query.where(deliveries.c[name] == value)
        return await fetch_page(self._connection, query, deliveries.c.id, request, _build_delivery)

    async def attempts(self, delivery_id: str) -> Sequence[Attempt]:
        """The attempts of a delivery, first to last."""
        query = sa.select(attempts).where(attempts.c.delivery_id == delivery_id).order_by(attempts.c.number)
        return [_build_attempt(row) for row in await self._connection.execute(query)]

    async def prospects(self, delivery_ids: Collection[str]) -> Mapping[str, Prospect]:
        """What decides when each that is not finished goes on."""
        return await fetch_prospects(self._connection, delivery_ids)

    async def retry(self, delivery_id: str, now: datetime) -> bool:
        """Make one due now, unless a request of it is in flight."""
        return await self._revive(Transition.RETRY, deliveries.c.id == delivery_id, now) == 1

    async def resend(self, delivery_ids: Collection[str], now: datetime) -> int:
        """Make any of them due now, whatever became of them."""
        return await self._revive(Transition.RESEND, among(deliveries.c.id, delivery_ids), now)

    async def recover(self, endpoint_id: str, since: datetime, now: datetime) -> int:
        """Make due now what failed since an instant. What is held is about to be released, and is due then."""
        failed = (
            (deliveries.c.endpoint_id == endpoint_id)
            & (deliveries.c.failure_count > 0)
            & (deliveries.c.last_attempt_at >= since)
        )
        lacking = (DeliveryState.PENDING, DeliveryState.HELD, DeliveryState.EXHAUSTED)
        present = await self._lock_endpoints(endpoints.c.id == endpoint_id)
        return await self._revive_of(present, Transition.RESEND, failed, now, among_states=lacking)

    async def _revive(self, transition: Transition, which: sa.ColumnElement[bool], now: datetime) -> int:
        present = await self._lock_endpoints(endpoints.c.id.in_(sa.select(deliveries.c.endpoint_id).where(which)))
        which &= among(deliveries.c.endpoint_id, [each.id for each in present])
        return await self._revive_of(present, transition, which, now, tuple(DeliveryState))

    async def _lock_endpoints(self, which: sa.ColumnElement[bool]) -> Sequence[sa.Row[Any]]:
        """Such endpoints as are not deleted, their status and ordering fixed until this transaction ends."""
        query = sa.select(endpoints.c.id, endpoints.c.status, endpoints.c.ordering)
        present = query.where(which, endpoints.c.status != EndpointStatus.DELETED)
        locked = present.order_by(endpoints.c.id).with_for_update(read=True)
        return list(await self._connection.execute(locked))

    async def _revive_of(
        self,
        present: Sequence[sa.Row[Any]],
        transition: Transition,
        which: sa.ColumnElement[bool],
        now: datetime,
        among_states: Collection[DeliveryState],
    ) -> int:
        """Make due now what matches, or held where its endpoint does not receive now."""
        if not present:
            return 0
        ids = [each.id for each in present]
        is_open = among(lanes.c.endpoint_id, ids) & lanes.c.opened_at.is_not(None)
        opened = sa.select(lanes.c.endpoint_id).where(is_open).order_by(lanes.c.endpoint_id)
        locked = opened.with_for_update(key_share=True)
        await self._connection.execute(lanes.update().where(lanes.c.endpoint_id.in_(locked)).values(probe_at=now))
        # Where nothing is in an order any more, neither is what was when it was over.
        keeps_order = among(deliveries.c.endpoint_id, [each.id for each in present if each.ordering != Ordering.NONE])
        move = build_move(
            transition,
            which & deliveries.c.lease_until.is_(None),
            among_states=among_states,
            silent=[each.id for each in present if each.status != EndpointStatus.ACTIVE],
            due_at=now,
            failure_count=0,
            finished_at=None,
            order_key=sa.case((keeps_order, deliveries.c.order_key)),
            position=sa.case((keeps_order, deliveries.c.position)),
        )
        moved = (await self._connection.execute(move)).rowcount
        self._on_due(ids)
        return moved

    async def cancel(self, delivery_id: str, now: datetime) -> bool:
        """Send one no more."""
        order = await self._connection.run_sync(
            lambda connection: _lock_to_end(SessionSqlalchemy(connection), delivery_id)
        )
        move = build_move(Transition.CANCEL, deliveries.c.id == delivery_id, due_at=None, finished_at=now)
        moved = (await self._connection.execute(move.returning(deliveries.c.endpoint_id))).scalars().all()
        if moved:
            await self._connection.run_sync(lambda connection: bring_forward(SessionSqlalchemy(connection), order))
            self._on_due(moved)
        return bool(moved)

    async def count_unfinished(self, endpoint_id: str, *, at_most: int) -> int:
        """How many are pending or held, counted along the partial indexes no further than `at_most`."""
        of_endpoint = deliveries.c.endpoint_id == endpoint_id
        stretches = [rows for state in UNFINISHED_STATES for rows, _ in STRETCHES[state]]
        found = sa.union_all(*(sa.select(deliveries.c.id).where(rows, of_endpoint) for rows in stretches))
        query = sa.select(sa.func.count()).select_from(found.limit(at_most).subquery())
        return (await self._connection.execute(query)).scalar_one()

    async def backlog(self) -> Backlog:
        """What waits, read from the partial indexes alone, and what keeps it."""
        return Backlog(*(await self._connection.execute(BACKLOG)).one())


_ENDPOINT_OF = Prepared(sa.select(deliveries.c.endpoint_id).where(deliveries.c.id == sa.bindparam("delivery")))


def _lock_to_end(session: Session, delivery_id: str) -> Collection[str]:
    """Lock a delivery that may be over soon, and what it keeps back; the delivery, if it is in an order."""
    LOCK_LANES.fetch(session, ids=[each for (each,) in _ENDPOINT_OF.fetch(session, delivery=delivery_id)])
    order = find_next(session, [delivery_id])
    LOCK_LEASED.fetch(session, ids=[delivery_id, *filter(None, order.values())])
    return order.keys()
