"""Events, and the answers that idempotency keys were given."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime
from operator import attrgetter

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from carehook.ledger.records import (
    Answered,
    Page,
    PageRequest,
    StoredEvent,
)
from carehook.ledger.sql.references import check_events
from carehook.ledger.sql.statements import Bulk, fetch_page
from carehook.ledger.sql.tables import (
    events,
    idempotency_keys,
)

_EVENT_NAMES = [field.name for field in dataclasses.fields(StoredEvent)]
ADD_EVENTS = Bulk(events.insert(), _EVENT_NAMES)
take_event = attrgetter(*_EVENT_NAMES)

ADD_ANSWERS = Bulk(idempotency_keys.insert(), ["organization_id", "key", "fingerprint", "answer", "created_at"])


def take_answers(answers: Mapping[tuple[str, str], Answered], now: datetime) -> list[tuple[object, ...]]:
    """The rows for `ADD_ANSWERS`, in the order of their keys."""
    return [
        (organization_id, key, answered.fingerprint, dict(answered.answer), now)
        for (organization_id, key), answered in sorted(answers.items(), key=lambda item: item[0])
    ]


class EventsSql:
    """See `port.Events`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, new: Sequence[StoredEvent]) -> None:
        """Store accepted events."""
        await check_events(self._connection, new)
        await ADD_EVENTS.execute(self._connection, [take_event(event) for event in new])

    async def get(self, event_id: str) -> StoredEvent | None:
        """One event."""
        row = (await self._connection.execute(sa.select(events).where(events.c.id == event_id))).one_or_none()
        return None if row is None else StoredEvent(**row._mapping)

    async def page(self, organization_id: str, request: PageRequest) -> Page[StoredEvent]:
        """A page of an organization's events."""
        query = sa.select(events).where(events.c.organization_id == organization_id)
        return await fetch_page(self._connection, query, events.c.id, request, lambda row: StoredEvent(**row._mapping))


class IdempotencyKeysSql:
    """See `port.IdempotencyKeys`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def forget(self, before: datetime) -> int:
        """Forget old answers."""
        statement = idempotency_keys.delete().where(idempotency_keys.c.created_at < before)
        return (await self._connection.execute(statement)).rowcount
