"""The queue that is the table of deliveries itself, by the statements of `queue_statements`."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any

from carehook.ids import ATTEMPT, new_id
from carehook.ledger.database import Database
from carehook.ledger.directory_sql import build_endpoint
from carehook.ledger.queue_statements import (
    ADD_ATTEMPTS,
    ATTEMPT_NAMES,
    DISABLE,
    ENDPOINTS_OF,
    EVENTS_OF,
    FINISH,
    GIVE_BACK,
    HOLD,
    LEASE,
    LOCK_ENDPOINTS,
    LOCK_LEASED,
    LOCK_LEASED_AND_HELD,
    LOST,
    RECOVER_LOST,
    WAITING_ENDPOINTS,
)
from carehook.ledger.records import Attempt, AttemptOutcome, ClaimedDelivery, FinishedAttempt
from carehook.ledger.sessions import Row, Session
from carehook.ledger.states import TRANSITIONS, DeliveryState, is_final

LOST_LEASE = "the worker stopped before the outcome was known; the receiver may have got it"

_RECOVERED_AT_ONCE = 1000


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

        def claim(session: Session) -> Sequence[ClaimedDelivery]:
            due = _find_due_endpoints(session, passing_over, now)
            if not due:
                return []
            share = max(1, min(per_endpoint, limit // len(due)))
            leased = LEASE[session.dialect.name].fetch(
                session, ids=due[:limit], share=share, now=now, until=now + lease
            )
            return _load(session, leased, now + lease)

        # A power cut may undo a lease: what it was for is due again, as when its worker dies.
        return await self._database.run(claim, durable=False)

    async def finish(self, finished: Sequence[FinishedAttempt], now: datetime) -> Sequence[bool]:
        """Record attempts whose lease still holds, and move their deliveries."""
        return await self._database.run(lambda session: _finish(session, finished, now))

    async def give_back(self, claimed: Iterable[ClaimedDelivery]) -> None:
        """End leases of deliveries that were not attempted."""
        leases = sorted((each.id, each.lease_token) for each in claimed)
        if not leases:
            return
        await self._database.run(lambda session: GIVE_BACK.run(session, leases))
        self.wake()

    async def recover_lost(self, now: datetime) -> int:
        """Record an interrupted attempt for each lease that ran out."""
        recovered = 0
        while count := await self._database.run(lambda session: _recover_some(session, now)):
            recovered += count
            self.wake()
        return recovered


def _find_due_endpoints(session: Session, passing_over: Collection[str], now: datetime) -> list[str]:
    return [
        endpoint_id
        for endpoint_id, due_at in WAITING_ENDPOINTS.fetch(session)
        if due_at <= now and endpoint_id not in passing_over
    ]


def _load(session: Session, leased: Sequence[Row], until: datetime) -> Sequence[ClaimedDelivery]:
    """The leased deliveries, first due first, with their events' bodies and their endpoints."""
    accepted = {
        event_id: (accepted_at, body)
        for event_id, accepted_at, body in EVENTS_OF.fetch(session, ids={row[5] for row in leased})
    }
    present = ENDPOINTS_OF.fetch(session, ids={row[7] for row in leased})
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
            leased
        )
    ]


def _finish(session: Session, finished: Sequence[FinishedAttempt], now: datetime) -> Sequence[bool]:
    to_disable = {each.endpoint_id for each in finished if each.disable_reason}
    states = _lock_leased(session, finished, to_disable)
    # Taken out when it is counted, so that a result given twice counts once.
    found = [states.pop((each.delivery_id, each.lease_token), None) for each in finished]
    counted = [(each, state) for each, state in zip(finished, found, strict=True) if state is not None]
    FINISH.run(session, [_take_result(each, state, now) for each, state in counted])
    ADD_ATTEMPTS.run(session, [_take_attempt(each.attempt) for each, _ in counted])
    for endpoint_id, reason in _disabled(counted).items():
        if DISABLE.fetch(session, endpoint=endpoint_id, reason=reason, now=now):
            HOLD.fetch(session, endpoint=endpoint_id)
    return [state is not None for state in found]


def _lock_leased(
    session: Session, finished: Sequence[FinishedAttempt], to_disable: Collection[str]
) -> dict[tuple[str, int], DeliveryState]:
    """The state of each delivery under lease, by its id and the lease's token; all that will change is locked."""
    ids = {each.delivery_id for each in finished}
    if to_disable:
        LOCK_ENDPOINTS.fetch(session, ids=to_disable)
        rows = LOCK_LEASED_AND_HELD.fetch(session, ids=ids, endpoint_ids=to_disable)
    else:
        rows = LOCK_LEASED.fetch(session, ids=ids)
    return {(delivery_id, token): DeliveryState(state) for delivery_id, token, state, until in rows if until}


def _recover_some(session: Session, now: datetime) -> int:
    lost = LOST.fetch(session, now=now, most=_RECOVERED_AT_ONCE)
    ADD_ATTEMPTS.run(session, [_take_attempt(_build_interrupted(*row)) for row in lost])
    RECOVER_LOST.run(session, [(delivery_id,) for delivery_id, *_ in lost])
    return len(lost)


_take_attempt = attrgetter(*ATTEMPT_NAMES)


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


def _build_interrupted(delivery_id: str, leased_at: datetime, lease_until: datetime, attempt_count: int) -> Attempt:
    return Attempt(
        id=new_id(ATTEMPT),
        delivery_id=delivery_id,
        number=attempt_count + 1,
        started_at=leased_at,
        duration=(lease_until - leased_at).total_seconds(),
        outcome=AttemptOutcome.INTERRUPTED,
        status_code=None,
        reason=LOST_LEASE,
    )


def _disabled(counted: Sequence[tuple[FinishedAttempt, DeliveryState]]) -> dict[str, str]:
    return {each.endpoint_id: each.disable_reason for each, _ in counted if each.disable_reason}
