"""A store with what tests do to it, in few words."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from carehook.bootstrap import build_ledger, build_queue
from carehook.ids import ATTEMPT, DELIVERY, EVENT, new_id
from carehook.ledger.connections.database import Database, parse_database_url
from carehook.ledger.port import Ledger, Queue
from carehook.ledger.records import (
    Additions,
    Answered,
    Attempt,
    AttemptOutcome,
    ClaimedDelivery,
    Delivery,
    Endpoint,
    FinishedAttempt,
    Known,
    Lane,
    NewDelivery,
    Organization,
    StoredEvent,
)
from carehook.ledger.states import DeliveryState, EndpointStatus, Ordering, Transition

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
SECOND = timedelta(seconds=1)
LEASE = timedelta(seconds=45)
ORGANIZATION = "org_1"


@dataclass
class Store:
    """A ledger and a queue, with the database under them for what only a test looks at."""

    ledger: Ledger
    queue: Queue
    database: Database
    _opened: contextlib.AsyncExitStack = field(repr=False)

    @classmethod
    async def open(cls, url: str, opened: contextlib.AsyncExitStack) -> Store:
        """A store that is closed with `opened`."""
        database = Database(parse_database_url(url))
        opened.push_async_callback(database.close)
        queue = build_queue(database)
        opened.push_async_callback(queue.close)
        return cls(build_ledger(database, queue.announce), queue, database, opened)

    async def second(self) -> Store:
        """The same store as another process sees it."""
        return await self.open(self.database.url.render_as_string(hide_password=False), self._opened)

    async def add_organization(self, organization_id: str = ORGANIZATION) -> None:
        async with self.ledger.transaction() as tx:
            await tx.organizations.add(Organization(organization_id, "Insurer", NOW))

    async def add_endpoints(self, *ids: str, **fields: Any) -> None:
        """Endpoints of the organization, which is made with them where there is none."""
        async with self.ledger.transaction() as tx:
            if not await tx.organizations.existing([ORGANIZATION]):
                await tx.organizations.add(Organization(ORGANIZATION, "Insurer", NOW))
            for each in ids:
                await tx.endpoints.add(build_endpoint(each, **fields))

    async def publish(
        self, *endpoint_ids: str, due_at: datetime = NOW, state: DeliveryState = DeliveryState.PENDING
    ) -> list[str]:
        """One event a delivery, in the order of the endpoints; the deliveries' ids."""
        new = [build_event(due_at) for _ in endpoint_ids]
        async with self.ledger.transaction() as tx:
            await tx.events.add(new)
            made = [
                build_delivery(event, endpoint_id, state) for event, endpoint_id in zip(new, endpoint_ids, strict=True)
            ]
            await tx.deliveries.add(made)
        return [delivery.id for delivery in made]

    async def accept(
        self, *endpoint_ids: str, patient: str | None = None, now: datetime = NOW, organization_id: str = ORGANIZATION
    ) -> list[str]:
        """Accept one event a delivery, as intake does: held and in order as the endpoints ask; the deliveries' ids."""
        made: list[NewDelivery] = []

        def decide(known: Known) -> Additions:
            present = {endpoint.id: endpoint for endpoint in known.endpoints}
            accepted = [
                build_event(now, organization_id=organization_id, patient_key=patient)
                for endpoint_id in endpoint_ids
                if endpoint_id in present
            ]
            recipients = [present[each] for each in endpoint_ids if each in present]
            made[:] = [
                build_delivery_for(event, endpoint) for event, endpoint in zip(accepted, recipients, strict=True)
            ]
            return Additions(accepted, made, {})

        await self.ledger.accept([organization_id], [], decide, now)
        return [delivery.id for delivery in made]

    async def answer(self, key: str, *, now: datetime = NOW) -> None:
        """Accept nothing, under an idempotency key."""
        answers = {(ORGANIZATION, key): Answered("fingerprint", {})}
        await self.ledger.accept([ORGANIZATION], [], lambda _: Additions((), (), answers), now)

    async def answered(self, *keys: str) -> set[str]:
        """Those of the idempotency keys that were used."""
        found: set[str] = set()

        def decide(known: Known) -> Additions:
            found.update(key for _, key in known.answered)
            return Additions((), (), {})

        await self.ledger.accept([ORGANIZATION], [(ORGANIZATION, key) for key in keys], decide, NOW)
        return found

    async def claim(
        self,
        limit: int = 100,
        *,
        per_endpoint: int = 100,
        passing_over: Sequence[str] = (),
        now: datetime = NOW,
        lease: timedelta = LEASE,
    ) -> Sequence[ClaimedDelivery]:
        """Claim after a look at the whole store, as a worker does now and then."""
        self.queue.wake()

        def room(endpoint_id: str) -> int:
            return 0 if endpoint_id in passing_over else per_endpoint

        return await self.queue.claim(limit, room=room, now=now, lease=lease)

    async def claim_known(self, limit: int = 100, *, now: datetime = NOW) -> Sequence[ClaimedDelivery]:
        """Claim what this process was told of, without a look at the whole store."""
        return await self.queue.claim(limit, room=lambda _: 100, now=now, lease=LEASE)

    async def claim_one(self, now: datetime = NOW) -> ClaimedDelivery:
        [claimed] = await self.claim(now=now)
        return claimed

    async def finish(
        self, claimed: ClaimedDelivery, transition: Transition = Transition.SUCCEED, **fields: Any
    ) -> bool:
        """Finish one claimed delivery a second after NOW; whether the result counted."""
        [counted] = await self.queue.finish([build_finished(claimed, transition, **fields)], NOW + SECOND)
        return counted

    async def fail_once(self, transition: Transition = Transition.RESCHEDULE) -> None:
        """Claim and fail the one delivery that is due."""
        assert await self.finish(
            await self.claim_one(), transition, due_at=NOW + 5 * SECOND if transition == Transition.RESCHEDULE else None
        )

    async def delivery(self, delivery_id: str) -> Delivery:
        async with self.ledger.snapshot() as tx:
            found = await tx.deliveries.get(delivery_id)
        assert found is not None
        return found

    async def states(self, *delivery_ids: str) -> list[DeliveryState]:
        return [(await self.delivery(each)).state for each in delivery_ids]

    async def attempts(self, delivery_id: str) -> Sequence[Attempt]:
        async with self.ledger.snapshot() as tx:
            return await tx.deliveries.attempts(delivery_id)

    async def endpoint(self, endpoint_id: str) -> Endpoint:
        async with self.ledger.snapshot() as tx:
            found = await tx.endpoints.get(endpoint_id)
        assert found is not None
        return found

    async def lane(self, endpoint_id: str) -> Lane:
        async with self.ledger.snapshot() as tx:
            return (await tx.endpoints.lanes([endpoint_id]))[endpoint_id]

    async def change(self, endpoint_id: str, **fields: Any) -> None:
        """Change an endpoint as the directory does."""
        async with self.ledger.transaction() as tx:
            endpoint = await tx.endpoints.get(endpoint_id, lock=True)
            assert endpoint is not None
            await tx.endpoints.update(replace(endpoint, **fields))

    async def set_status(self, endpoint_id: str, status: EndpointStatus) -> None:
        """Pause, resume or delete as the directory does: the endpoint first, then its deliveries."""
        await self.change(endpoint_id, status=status)
        await self.settle(endpoint_id)

    async def settle(self, endpoint_id: str, now: datetime = NOW) -> int:
        """Let an endpoint's deliveries follow its status; how many did."""
        moved = 0
        while True:
            settled = await self.ledger.settle(endpoint_id, now, waits=True)
            moved += settled.moved
            if settled.is_complete:
                return moved

    async def until_blocked(self, transactions: int = 1) -> None:
        """Return when so many other transactions wait for a lock (PostgreSQL)."""
        query = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        async with asyncio.timeout(30):
            while True:
                async with self.database.read() as connection:
                    if (await connection.execute(query)).scalar_one() >= transactions:
                        return


def build_endpoint(endpoint_id: str, **fields: Any) -> Endpoint:
    endpoint = Endpoint(
        id=endpoint_id,
        organization_id=ORGANIZATION,
        url="https://insurer.example/hook",
        description="",
        event_types=("patient_report_sent",),
        status=EndpointStatus.ACTIVE,
        status_reason=None,
        sealed_secrets=b"\x00sealed",
        created_at=NOW,
        updated_at=NOW,
    )
    return replace(endpoint, **fields)


def build_event(created_at: datetime = NOW, **fields: Any) -> StoredEvent:
    event = StoredEvent(
        id=new_id(EVENT),
        organization_id=ORGANIZATION,
        type="patient_report_sent",
        occurred_on=1704067200.5,
        body=b'{"type": "patient_report_sent"}',
        is_test=False,
        created_at=created_at,
    )
    return replace(event, **fields)


def build_delivery(event: StoredEvent, endpoint_id: str, state: DeliveryState = DeliveryState.PENDING) -> NewDelivery:
    return NewDelivery(
        id=new_id(DELIVERY),
        event_id=event.id,
        endpoint_id=endpoint_id,
        organization_id=event.organization_id,
        event_type=event.type,
        state=state,
        created_at=event.created_at,
    )


def build_delivery_for(event: StoredEvent, endpoint: Endpoint) -> NewDelivery:
    """A delivery as intake makes it: held where the endpoint does not receive, in order where it asks for it."""
    active = endpoint.status == EndpointStatus.ACTIVE
    delivery = build_delivery(event, endpoint.id, DeliveryState.PENDING if active else DeliveryState.HELD)
    return replace(delivery, order_key=event.patient_key if endpoint.ordering is Ordering.PATIENT else None)


def build_finished(
    claimed: ClaimedDelivery,
    transition: Transition = Transition.SUCCEED,
    *,
    started_at: datetime = NOW,
    outcome: AttemptOutcome = AttemptOutcome.RESPONDED,
    due_at: datetime | None = None,
    spends_retry: bool | None = None,
    disable_reason: str | None = None,
) -> FinishedAttempt:
    """What a worker reports; a transition other than SUCCEED spends a retry unless told otherwise."""
    succeeded = transition == Transition.SUCCEED
    return FinishedAttempt(
        delivery_id=claimed.id,
        endpoint_id=claimed.endpoint.id,
        lease_token=claimed.lease_token,
        attempt=Attempt(
            id=new_id(ATTEMPT),
            delivery_id=claimed.id,
            number=claimed.attempt_count + 1,
            started_at=started_at,
            duration=0.25,
            outcome=outcome,
            status_code=200 if succeeded else 500,
            reason=None if succeeded else "500 Internal Server Error",
            sealed_excerpt=None if succeeded else b"\x00excerpt",
        ),
        transition=transition,
        due_at=due_at,
        spends_retry=not succeeded if spends_retry is None else spends_retry,
        disable_reason=disable_reason,
    )
