"""The queue that is the table of deliveries itself."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from carehook.ids import ATTEMPT, new_id
from carehook.ledger.database import Database
from carehook.ledger.directory_sql import build_endpoint
from carehook.ledger.queue_statements import (
    ADD_ATTEMPTS,
    ATTEMPT_NAMES,
    ENDPOINTS_OF,
    EVENTS_OF,
    FINISH,
    GIVE_BACK,
    LEASE,
    LOCK_ENDPOINTS,
    LOCK_LEASED,
    LOCK_LEASED_AND_HELD,
    RECOVER_LOST,
    WAITING_ENDPOINTS,
)
from carehook.ledger.records import Attempt, AttemptOutcome, ClaimedDelivery, FinishedAttempt
from carehook.ledger.statements import build_move
from carehook.ledger.states import TRANSITIONS, DeliveryState, EndpointStatus, Transition, is_final
from carehook.ledger.tables import deliveries, endpoints

LOST_LEASE = "the worker stopped before the outcome was known; the receiver may have got it"

_RECOVERED_AT_ONCE = 1000
# `.value`: the driver is slow to see that a member of an enumeration is a string.
_take_attempt = attrgetter(*(f"{name}.value" if name == "outcome" else name for name in ATTEMPT_NAMES))


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
        # A power cut may undo a lease: what it was for is due again, as when its worker dies.
        async with self._database.write(durable=False) as connection:
            parameters = {"ids": due[:limit], "share": share, "now": now, "until": now + lease}
            leased = (await connection.execute(LEASE[connection.dialect.name], parameters)).all()
            return await _load(connection, leased, now + lease)

    async def finish(self, finished: Sequence[FinishedAttempt], now: datetime) -> Sequence[bool]:
        """Record attempts whose lease still holds, and move their deliveries."""
        async with self._database.write() as connection:
            to_disable = {each.endpoint_id for each in finished if each.disable_reason}
            states = await _lock_leased(connection, finished, to_disable)
            # Taken out when it is counted, so that a result given twice counts once.
            found = [states.pop((each.delivery_id, each.lease_token), None) for each in finished]
            counted = [(each, state) for each, state in zip(finished, found, strict=True) if state is not None]
            await FINISH.execute(connection, [_take_result(each, state, now) for each, state in counted])
            await ADD_ATTEMPTS.execute(connection, [_take_attempt(each.attempt) for each, _ in counted])
            for endpoint_id, reason in _disabled(counted).items():
                await _disable(connection, endpoint_id, reason, now)
        return [state is not None for state in found]

    async def give_back(self, claimed: Iterable[ClaimedDelivery]) -> None:
        """End leases of deliveries that were not attempted."""
        leases = sorted((each.id, each.lease_token) for each in claimed)
        if not leases:
            return
        async with self._database.write() as connection:
            await GIVE_BACK.execute(connection, leases)
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
            await ADD_ATTEMPTS.execute(connection, [_take_attempt(_build_interrupted(row)) for row in lost])
            await RECOVER_LOST.execute(connection, [(row.id,) for row in lost])
        self.wake()
        return len(lost)


async def _due_endpoints(connection: AsyncConnection, now: datetime) -> list[str]:
    rows = (await connection.execute(WAITING_ENDPOINTS)).all()
    return [row.endpoint_id for row in rows if row.due_at <= now]


async def _load(connection: AsyncConnection, leased: Sequence[Any], until: datetime) -> Sequence[ClaimedDelivery]:
    """The leased deliveries, first due first, with their events' bodies and their endpoints."""
    found = await connection.execute(EVENTS_OF, {"ids": {row.event_id for row in leased}})
    accepted = {event_id: (accepted_at, body) for event_id, accepted_at, body in found}
    present = await connection.execute(ENDPOINTS_OF, {"ids": {row.endpoint_id for row in leased}})
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


async def _lock_leased(
    connection: AsyncConnection, finished: Sequence[FinishedAttempt], to_disable: Collection[str]
) -> dict[tuple[str, int], DeliveryState]:
    """The state of each delivery under lease, by its id and the lease's token; all that will change is locked."""
    if to_disable:
        await connection.execute(LOCK_ENDPOINTS, {"ids": to_disable})
    lock = LOCK_LEASED if not to_disable else LOCK_LEASED_AND_HELD
    parameters = {"ids": {each.delivery_id for each in finished}, "endpoint_ids": to_disable}
    rows = await connection.execute(lock, parameters)
    return {(delivery_id, token): DeliveryState(state) for delivery_id, token, state, until in rows if until}


def _take_result(finished: FinishedAttempt, before: DeliveryState, now: datetime) -> tuple[Any, ...]:
    state = TRANSITIONS[before][finished.transition]
    final = is_final(state)
    return (
        finished.delivery_id,
        state.value,
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
