"""The queue that is the table of deliveries itself.

A claim looks only through rows that wait, and through no more of one endpoint's than it may take: it hops over the
partial index from endpoint to endpoint, so that a long backlog costs its neighbours nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from carehook.ids import ATTEMPT, new_id
from carehook.ledger.database import Database
from carehook.ledger.directory_sql import build_endpoint
from carehook.ledger.records import AttemptOutcome, ClaimedDelivery, FinishedAttempt
from carehook.ledger.statements import build_move
from carehook.ledger.states import TRANSITIONS, DeliveryState, EndpointStatus, Transition, is_final
from carehook.ledger.tables import LEASED, WAITING, attempts, deliveries, endpoints, events

LOST_LEASE = "the worker stopped before the outcome was known; the receiver may have got it"


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
            leases = await _lease(connection, due[:limit], share, now, now + lease)
        async with self._database.read() as connection:
            return await _load(connection, leases)

    async def finish(self, finished: Sequence[FinishedAttempt], now: datetime) -> Sequence[bool]:
        """Record attempts whose lease still holds, and move their deliveries."""
        async with self._database.write() as connection:
            # Endpoints are locked before deliveries, as everywhere.
            for endpoint_id in sorted({each.endpoint_id for each in finished if each.disable_reason}):
                await connection.execute(
                    sa.select(endpoints.c.id).where(endpoints.c.id == endpoint_id).with_for_update()
                )
            states = await _states_under_lease(connection, finished)
            counted = [each for each in finished if each.delivery_id in states]
            if counted:
                await connection.execute(_FINISH, [_finish_values(each, states, now) for each in counted])
                await connection.execute(attempts.insert(), [_attempt_values(each) for each in counted])
            for endpoint_id, reason in _disabled(counted).items():
                await _disable(connection, endpoint_id, reason, now)
        return [each.delivery_id in states for each in finished]

    async def give_back(self, claimed: Iterable[ClaimedDelivery]) -> None:
        """End leases of deliveries that were not attempted."""
        leases = [
            {"delivery": each.id, "token": each.lease_token} for each in sorted(claimed, key=lambda each: each.id)
        ]
        if not leases:
            return
        async with self._database.write() as connection:
            await connection.execute(_GIVE_BACK, leases)
        self.wake()

    async def recover_lost(self, now: datetime) -> int:
        """Record an interrupted attempt for each lease that ran out."""
        ran_out = deliveries.c.lease_until <= now
        async with self._database.read() as connection:
            if (await connection.execute(sa.select(deliveries.c.id).where(ran_out).limit(1))).first() is None:
                return 0
        async with self._database.write() as connection:
            query = (
                sa.select(deliveries.c.id, deliveries.c.leased_at, deliveries.c.attempt_count)
                .where(ran_out)
                .order_by(deliveries.c.id)
                .limit(1000)
                .with_for_update(skip_locked=True)
            )
            lost = (await connection.execute(query)).all()
            if lost:
                await connection.execute(attempts.insert(), [_interrupted_values(row, now) for row in lost])
                await connection.execute(_RECOVER_LOST, [{"delivery": row.id, "now": now} for row in lost])
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


async def _lease(
    connection: AsyncConnection, endpoint_ids: Sequence[str], share: int, now: datetime, until: datetime
) -> Sequence[sa.Row[Any]]:
    first_due = (
        sa.select(deliveries.c.id)
        .where(WAITING, deliveries.c.endpoint_id == endpoints.c.id, deliveries.c.due_at <= now)
        .order_by(deliveries.c.due_at)
        .limit(share)
    )
    chosen = sa.select(deliveries.c.id).select_from(endpoints)
    if connection.dialect.name == "sqlite":
        chosen = chosen.join(deliveries, deliveries.c.id.in_(first_due.correlate(endpoints)))
    else:
        lateral = first_due.with_for_update(skip_locked=True).lateral()
        chosen = sa.select(lateral.c.id).select_from(endpoints.join(lateral, sa.true()))
    chosen = chosen.where(endpoints.c.id.in_(endpoint_ids), endpoints.c.status == EndpointStatus.ACTIVE)
    statement = (
        deliveries.update()
        .where(deliveries.c.id.in_(chosen))
        .values(leased_at=now, lease_until=until, lease_token=deliveries.c.lease_token + 1)
        .returning(deliveries.c.id, deliveries.c.lease_token)
    )
    return (await connection.execute(statement)).all()


async def _load(connection: AsyncConnection, leases: Sequence[sa.Row[Any]]) -> list[ClaimedDelivery]:
    if not leases:
        return []
    query = (
        sa.select(
            deliveries.c.id,
            deliveries.c.endpoint_id,
            deliveries.c.lease_token,
            deliveries.c.lease_until,
            deliveries.c.attempt_count,
            deliveries.c.failure_count,
            deliveries.c.event_id,
            deliveries.c.event_type,
            events.c.created_at.label("accepted_at"),
            events.c.body,
        )
        .join(events, events.c.id == deliveries.c.event_id)
        .where(deliveries.c.id.in_([row.id for row in leases]))
        .order_by(deliveries.c.due_at, deliveries.c.id)
    )
    rows = (await connection.execute(query)).all()
    query = sa.select(endpoints).where(endpoints.c.id.in_(sorted({row.endpoint_id for row in rows})))
    found = {row[endpoints.c.id]: build_endpoint(row) for row in (await connection.execute(query)).mappings()}
    tokens = {row.id: row.lease_token for row in leases}
    return [
        ClaimedDelivery(
            id=row.id,
            lease_token=row.lease_token,
            lease_until=row.lease_until,
            attempt_count=row.attempt_count,
            failure_count=row.failure_count,
            event_id=row.event_id,
            event_type=row.event_type,
            accepted_at=row.accepted_at,
            body=row.body,
            endpoint=found[row.endpoint_id],
        )
        for row in rows
        # Between the two transactions a lease may have run out and been taken by another worker.
        if tokens[row.id] == row.lease_token and row.lease_until is not None
    ]


_FINISH = (
    deliveries.update()
    .where(deliveries.c.id == sa.bindparam("delivery"))
    .values(
        state=sa.bindparam("new_state"),
        due_at=sa.bindparam("new_due_at"),
        leased_at=None,
        lease_until=None,
        attempt_count=sa.bindparam("attempts"),
        failure_count=deliveries.c.failure_count + sa.bindparam("spent"),
        last_attempt_at=sa.bindparam("attempted_at"),
        finished_at=sa.bindparam("ended_at"),
    )
)

_GIVE_BACK = (
    deliveries.update()
    .where(deliveries.c.id == sa.bindparam("delivery"), deliveries.c.lease_token == sa.bindparam("token"))
    .values(leased_at=None, lease_until=None)
)

_RECOVER_LOST = (
    deliveries.update()
    .where(deliveries.c.id == sa.bindparam("delivery"))
    .values(
        leased_at=None,
        lease_until=None,
        attempt_count=deliveries.c.attempt_count + 1,
        last_attempt_at=sa.bindparam("now"),
    )
)


async def _states_under_lease(
    connection: AsyncConnection, finished: Sequence[FinishedAttempt]
) -> dict[str, DeliveryState]:
    """The state of each delivery whose lease is still the one under which it was claimed, locked."""
    tokens = {each.delivery_id: each.lease_token for each in finished}
    query = (
        sa.select(deliveries.c.id, deliveries.c.state, deliveries.c.lease_token)
        .where(deliveries.c.id.in_(sorted(tokens)), LEASED)
        .order_by(deliveries.c.id)
        .with_for_update()
    )
    return {
        row.id: DeliveryState(row.state) for row in await connection.execute(query) if row.lease_token == tokens[row.id]
    }


def _finish_values(finished: FinishedAttempt, states: dict[str, DeliveryState], now: datetime) -> dict[str, Any]:
    state = TRANSITIONS[states[finished.delivery_id]][finished.transition]
    return {
        "delivery": finished.delivery_id,
        "new_state": state,
        "new_due_at": None if is_final(state) else finished.due_at,
        "attempts": finished.attempt.number,
        "spent": int(finished.spends_retry),
        "attempted_at": finished.attempt.started_at,
        "ended_at": now if is_final(state) else None,
    }


def _attempt_values(finished: FinishedAttempt) -> dict[str, Any]:
    attempt = finished.attempt
    return {
        "id": attempt.id,
        "delivery_id": attempt.delivery_id,
        "number": attempt.number,
        "started_at": attempt.started_at,
        "duration": attempt.duration,
        "outcome": attempt.outcome,
        "status_code": attempt.status_code,
        "reason": attempt.reason,
        "sealed_excerpt": attempt.sealed_excerpt,
    }


def _interrupted_values(row: sa.Row[Any, Any, Any], now: datetime) -> dict[str, Any]:
    return {
        "id": new_id(ATTEMPT),
        "delivery_id": row.id,
        "number": row.attempt_count + 1,
        "started_at": row.leased_at,
        "duration": (now - row.leased_at).total_seconds(),
        "outcome": AttemptOutcome.INTERRUPTED,
        "status_code": None,
        "reason": LOST_LEASE,
        "sealed_excerpt": None,
    }


def _disabled(finished: Sequence[FinishedAttempt]) -> dict[str, str]:
    return {each.endpoint_id: each.disable_reason for each in finished if each.disable_reason}


async def _disable(connection: AsyncConnection, endpoint_id: str, reason: str, now: datetime) -> None:
    disabled = await connection.execute(
        endpoints.update()
        .where(endpoints.c.id == endpoint_id, endpoints.c.status == EndpointStatus.ACTIVE)
        .values(status=EndpointStatus.DISABLED, status_reason=reason, updated_at=now)
    )
    if disabled.rowcount:
        await connection.execute(build_move(Transition.HOLD, deliveries.c.endpoint_id == endpoint_id))
