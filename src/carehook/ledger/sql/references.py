"""What new events and deliveries refer to is there. On PostgreSQL nothing else sees to it (see `tables`).

To look before adding is enough: organizations, endpoints and events are never removed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from carehook.ledger.port import DanglingReference
from carehook.ledger.records import Additions, Known, NewDelivery, StoredEvent
from carehook.ledger.sql.statements import among
from carehook.ledger.sql.tables import endpoints, events, organizations


def check_additions(additions: Additions, known: Known) -> None:
    """Raises `DanglingReference` where what is to be accepted refers to what is neither known nor added with it."""
    _compare("organizations", (each.organization_id for each in additions.events), known.organizations)
    _compare("organizations", (each.organization_id for each in additions.deliveries), known.organizations)
    _compare("events", (each.event_id for each in additions.deliveries), {each.id for each in additions.events})
    _compare("endpoints", (each.endpoint_id for each in additions.deliveries), {each.id for each in known.endpoints})


async def check_events(connection: AsyncConnection, new: Sequence[StoredEvent]) -> None:
    """Raises `DanglingReference` where an event is of an organization that there is not."""
    await _check(connection, organizations, (each.organization_id for each in new))


async def check_deliveries(connection: AsyncConnection, new: Sequence[NewDelivery]) -> None:
    """Raises `DanglingReference` where a delivery is of what is not there."""
    await _check(connection, organizations, (each.organization_id for each in new))
    await _check(connection, events, (each.event_id for each in new))
    await _check(connection, endpoints, (each.endpoint_id for each in new))


async def _check(connection: AsyncConnection, table: sa.Table, ids: Iterable[str]) -> None:
    wanted = set(ids)
    found = await connection.scalars(sa.select(table.c.id).where(among(table.c.id, wanted)))
    _compare(table.name, wanted, set(found))


def _compare(table: str, wanted: Iterable[str], present: Collection[str]) -> None:
    if missing := set(wanted).difference(present):
        raise DanglingReference(f"of the {table} that new rows refer to, {len(missing)} are not there")
