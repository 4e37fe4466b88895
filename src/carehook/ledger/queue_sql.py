"""The queue that is the table of deliveries itself.

A claim looks only through rows that wait, and through no more of one endpoint's than it may take: it hops over the
partial index from endpoint to endpoint, so that a long backlog costs its neighbours nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from carehook.ids import ATTEMPT, new_id
from carehook.ledger.database import Database
from carehook.ledger.directory_sql import build_endpoint
from carehook.ledger.records import Attempt, AttemptOutcome, ClaimedDelivery, FinishedAttempt
from carehook.ledger.statements import Bulk, Ids, among, build_move, lock_deliveries
from carehook.ledger.states import TRANSITIONS, DeliveryState, EndpointStatus, Transition, is_final, states_before
from carehook.ledger.tables import LEASED, WAITING, attempts, deliveries, endpoints, events, in_state

LOST_LEASE = "the worker stopped before the outcome was known; the receiver may have got it"

_RECOVERED_AT_ONCE = 1000
_ids = sa.bindparam("ids", type_=Ids())


class QueueSql:
    """See `port.Queue`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._due = asyncio.Event()

    def wake(self) -> None:
        """Say that something may be due now."""
        self._due.set()

    async def wait(self, *, at_most: timedelta) -> None:
        """Wait for `wake`, or for as long as another process's work may go unseen."""
        try:
            await asyncio.wait_for(self._due.wait(), at_most.total_seconds())
        except TimeoutError:
            return

    async def claim(
        self, limit: int, *, per_endpoint: int, passing_over: Collection[str], now: datetime, lease: timedelta
    ) -> Sequence[ClaimedDelivery]:
        """Lease due deliveries, those of the longest waiting endpoints first."""
        self._due.clear()
        async with self._database.read() as connection:
            due = [each for each in await _due_endpoints(connection, now) if each not in passing_over]
        if not due:
            return []
        share = max(1, min(per_endpoint, limit // len(due)))
        async with self._database.write() as connection:
            parameters = {"ids": due[:limit], "share": share, "now": now, "until": now + lease}
            leased = (await connection.execute(_LEASE[connection.dialect.name], parameters)).all()
            return await _load(connection, leased, now + lease)

    async def finish(self, finished: Sequence[FinishedAttempt], now: datetime) -> Sequence[bool]:
        """Record attempts whose lease still holds, and move their deliveries."""
        async with self._database.write() as connection:
            to_disable = {each.endpoint_id for each in finished if each.disable_reason}
            states = await _lock_leased(connection, finished, to_disable)
            # Taken out when it is counted, so that a result given twice counts once.
            found = [states.pop((each.delivery_id, each.lease_token), None) for each in finished]
            counted = [(each, state) for each, state in zip(finished, found, strict=True) if state is not None]
            await _FINISH.execute(connection, [_take_result(each, state, now) for each, state in counted])
            await _ADD_ATTEMPTS.execute(connection, [_take_attempt(each.attempt) for each, _ in counted])
            for endpoint_id, reason in _disabled(counted).items():
                await _disable(connection, endpoint_id, reason, now)
        return [state is not None for state in found]

    async def give_back(self, claimed: Iterable[ClaimedDelivery]) -> None:
        """End leases of deliveries that were not attempted."""
        leases = sorted((each.id, each.lease_token) for each in claimed)
        if not leases:
            return
        async with self._database.write() as connection:
            await _GIVE_BACK.execute(connection, leases)
        self.wake()

    async def recover_lost(self, now: datetime) -> int:
        """Record an interrupted attempt for each lease that ran out."""
        recovered = 0
        while count := await self._recover_some(now):
            recovered += count
        return recovered

    async def _recover_some(self, now: datetime) -> int:
        ran_out = deliveries.c.lease_until <= now
        async with self._database.read() as connection:
            if (await connection.execute(sa.select(deliveries.c.id).where(ran_out).limit(1))).first() is None:
                return 0
        columns = (deliveries.c.id, deliveries.c.leased_at, deliveries.c.lease_until, deliveries.c.attempt_count)
        async with self._database.write() as connection:
            query = sa.select(*columns).where(ran_out).order_by(deliveries.c.lease_until).limit(_RECOVERED_AT_ONCE)
            lost = (await connection.execute(query.with_for_update(skip_locked=True, key_share=True))).all()
            await _ADD_ATTEMPTS.execute(connection, [_take_attempt(_build_interrupted(row)) for row in lost])
            await _RECOVER_LOST.execute(connection, [(row.id,) for row in lost])
        self.wake()
        return len(lost)


async def _due_endpoints(connection: AsyncConnection, now: datetime) -> list[str]:
    rows = (await connection.execute(_WAITING_ENDPOINTS)).all()
    return [row.endpoint_id for row in rows if row.due_at <= now]


def _build_waiting_endpoints() -> sa.Select[Any]:
    """Each endpoint for which something waits with the instant its first delivery is due, the longest due first.

    A recursive query that asks the index for the next greater endpoint, once per endpoint.
    """
    first = sa.select(sa.func.min(deliveries.c.endpoint_id).label("endpoint_id")).where(WAITING)
    hops = first.cte("hops", recursive=True)
    next_endpoint = (
        sa.select(sa.func.min(deliveries.c.endpoint_id))
        .where(WAITING, deliveries.c.endpoint_id > hops.c.endpoint_id)
        .scalar_subquery()
    )
    hops = hops.union_all(sa.select(next_endpoint).where(hops.c.endpoint_id.is_not(None)))
    due_at = (
        sa.select(sa.func.min(deliveries.c.due_at))
        .where(WAITING, deliveries.c.endpoint_id == hops.c.endpoint_id)
        .scalar_subquery()
        .label("due_at")
    )
    found = sa.select(hops.c.endpoint_id, due_at).where(hops.c.endpoint_id.is_not(None)).subquery()
    return sa.select(found).where(found.c.due_at.is_not(None)).order_by(found.c.due_at)


_WAITING_ENDPOINTS = _build_waiting_endpoints()


def _build_lease(dialect: str) -> Any:
    """An update that leases the first `share` due deliveries of each endpoint and gives back what it leased."""
    first_due = (
        sa.select(deliveries.c.id)
        .where(WAITING, deliveries.c.endpoint_id == endpoints.c.id, deliveries.c.due_at <= sa.bindparam("now"))
        .order_by(deliveries.c.due_at)
        .limit(sa.bindparam("share"))
    )
    if dialect == "sqlite":
        pairs = endpoints.join(deliveries, deliveries.c.id.in_(first_due.correlate(endpoints)))
        chosen = sa.select(deliveries.c.id).select_from(pairs)
    else:
        lateral = first_due.with_for_update(skip_locked=True, key_share=True).lateral()
        chosen = sa.select(lateral.c.id).select_from(endpoints.join(lateral, sa.true()))
    chosen = chosen.where(among(endpoints.c.id, _ids), endpoints.c.status == EndpointStatus.ACTIVE)
    return (
        deliveries.update()
        .where(deliveries.c.id.in_(chosen))
        .values(
            leased_at=sa.bindparam("now"), lease_until=sa.bindparam("until"), lease_token=deliveries.c.lease_token + 1
        )
        .returning(
            deliveries.c.due_at,
            deliveries.c.id,
            deliveries.c.lease_token,
            deliveries.c.attempt_count,
            deliveries.c.failure_count,
            deliveries.c.event_id,
            deliveries.c.event_type,
            deliveries.c.endpoint_id,
        )
    )


_LEASE = {dialect: _build_lease(dialect) for dialect in ("sqlite", "postgresql")}
_EVENTS_OF = sa.select(events.c.id, events.c.created_at, events.c.body).where(among(events.c.id, _ids))
_ENDPOINTS_OF = sa.select(endpoints).where(among(endpoints.c.id, _ids))


async def _load(connection: AsyncConnection, leased: Sequence[Any], until: datetime) -> Sequence[ClaimedDelivery]:
    """The leased deliveries, first due first, with their events' bodies and their endpoints."""
    found = await connection.execute(_EVENTS_OF, {"ids": {row.event_id for row in leased}})
    accepted = {event_id: (accepted_at, body) for event_id, accepted_at, body in found}
    present = await connection.execute(_ENDPOINTS_OF, {"ids": {row.endpoint_id for row in leased}})
    endpoint_of = {endpoint.id: endpoint for endpoint in map(build_endpoint, present)}
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
            map(tuple, leased)
        )
    ]


_FINISH = Bulk(
    deliveries.update()
    .where(deliveries.c.id == sa.bindparam("delivery"))
    .values(
        state=sa.bindparam("new_state"),
        due_at=sa.bindparam("new_due_at"),
        leased_at=sa.null(),
        lease_until=sa.null(),
        attempt_count=sa.bindparam("attempts"),
        failure_count=deliveries.c.failure_count + sa.bindparam("spent"),
        last_attempt_at=sa.bindparam("attempted_at"),
        finished_at=sa.bindparam("ended_at"),
    ),
    ["delivery", "new_state", "new_due_at", "attempts", "spent", "attempted_at", "ended_at"],
)

_GIVE_BACK = Bulk(
    deliveries.update()
    .where(deliveries.c.id == sa.bindparam("delivery"), deliveries.c.lease_token == sa.bindparam("token"))
    .values(leased_at=sa.null(), lease_until=sa.null()),
    ["delivery", "token"],
)

_RECOVER_LOST = Bulk(
    deliveries.update()
    .where(deliveries.c.id == sa.bindparam("delivery"))
    .values(
        leased_at=sa.null(),
        lease_until=sa.null(),
        attempt_count=deliveries.c.attempt_count + sa.literal_column("1"),
        last_attempt_at=deliveries.c.leased_at,
    ),
    ["delivery"],
)

_ATTEMPT_NAMES = [field.name for field in dataclasses.fields(Attempt)]
_ADD_ATTEMPTS = Bulk(attempts.insert(), _ATTEMPT_NAMES)
_take_attempt = attrgetter(*_ATTEMPT_NAMES)


async def _lock_leased(
    connection: AsyncConnection, finished: Sequence[FinishedAttempt], to_disable: Collection[str]
) -> dict[tuple[str, int], DeliveryState]:
    """The state of each delivery under lease, by its id and the lease's token; all that will change is locked."""
    if to_disable:
        await connection.execute(_LOCK_ENDPOINTS, {"ids": to_disable})
    lock = _LOCK_LEASED if not to_disable else _LOCK_LEASED_AND_HELD
    parameters = {"ids": {each.delivery_id for each in finished}, "endpoint_ids": to_disable}
    rows = await connection.execute(lock, parameters)
    return {(delivery_id, token): DeliveryState(state) for delivery_id, token, state, until in rows if until}


_finished = among(deliveries.c.id, _ids) & LEASED
_to_hold = in_state(
    *states_before(Transition.HOLD),
    where=among(deliveries.c.endpoint_id, sa.bindparam("endpoint_ids", type_=Ids())),
)
_lease_columns = (deliveries.c.id, deliveries.c.lease_token, deliveries.c.state, deliveries.c.lease_until)
_LOCK_LEASED = lock_deliveries(_finished, *_lease_columns)
_LOCK_LEASED_AND_HELD = lock_deliveries(_finished | _to_hold, *_lease_columns)
_LOCK_ENDPOINTS = (
    sa.select(endpoints.c.id)
    .where(among(endpoints.c.id, _ids))
    .order_by(endpoints.c.id)
    .with_for_update(key_share=True)
)


def _take_result(finished: FinishedAttempt, before: DeliveryState, now: datetime) -> tuple[Any, ...]:
    state = TRANSITIONS[before][finished.transition]
    final = is_final(state)
    return (
        finished.delivery_id,
        state,
        None if final else finished.due_at,
        finished.attempt.number,
        int(finished.spends_retry),
        finished.attempt.started_at,
        now if final else None,
    )


def _build_interrupted(row: Any) -> Attempt:
    return Attempt(
        id=new_id(ATTEMPT),
        delivery_id=row.id,
        number=row.attempt_count + 1,
        started_at=row.leased_at,
        duration=(row.lease_until - row.leased_at).total_seconds(),
        outcome=AttemptOutcome.INTERRUPTED,
        status_code=None,
        reason=LOST_LEASE,
    )


def _disabled(counted: Sequence[tuple[FinishedAttempt, DeliveryState]]) -> dict[str, str]:
    return {each.endpoint_id: each.disable_reason for each, _ in counted if each.disable_reason}


async def _disable(connection: AsyncConnection, endpoint_id: str, reason: str, now: datetime) -> None:
    disabled = await connection.execute(
        endpoints.update()
        .where(endpoints.c.id == endpoint_id, endpoints.c.status == EndpointStatus.ACTIVE)
        .values(status=EndpointStatus.DISABLED, status_reason=reason, updated_at=now)
    )
    if disabled.rowcount:
        await connection.execute(build_move(Transition.HOLD, deliveries.c.endpoint_id == endpoint_id))
