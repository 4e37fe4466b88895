"""Organizations and their endpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from carehook.ledger.records import Endpoint, Organization, Page, PageRequest
from carehook.ledger.statements import Ids, Prepared, among, fetch_page
from carehook.ledger.states import EndpointStatus
from carehook.ledger.tables import endpoints, organizations

_present = endpoints.c.status != EndpointStatus.DELETED

_organization_ids = sa.bindparam("organization_ids", type_=Ids())
_existing = sa.select(organizations.c.id).where(among(organizations.c.id, _organization_ids))
_recipients = (
    sa.select(endpoints)
    .where(among(endpoints.c.organization_id, _organization_ids), _present)
    .order_by(endpoints.c.id)
    .with_for_update(read=True)
)
EXISTING, RECIPIENTS = Prepared(_existing), Prepared(_recipients)
"""The same within a session, as `Organizations.existing` and `Endpoints.recipients`."""


def build_endpoint(row: Sequence[Any]) -> Endpoint:
    """The endpoint that a row of the table holds, its columns in their order."""
    endpoint_id, organization_id, url, description, event_types, status, *rest = row
    return Endpoint(endpoint_id, organization_id, url, description, tuple(event_types), EndpointStatus(status), *rest)


def _endpoint_values(endpoint: Endpoint) -> dict[str, Any]:
    values = {field.name: getattr(endpoint, field.name) for field in dataclasses.fields(endpoint)}
    values["event_types"] = list(endpoint.event_types)
    return values


class OrganizationsSql:
    """See `port.Organizations`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, organization: Organization) -> None:
        """Store a new organization."""
        await self._connection.execute(organizations.insert(), dataclasses.asdict(organization))

    async def get(self, organization_id: str) -> Organization | None:
        """One organization."""
        query = sa.select(organizations).where(organizations.c.id == organization_id)
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else Organization(**row._mapping)

    async def existing(self, organization_ids: Collection[str]) -> frozenset[str]:
        """Those of the ids that there are."""
        found = await self._connection.execute(_existing, {"organization_ids": organization_ids})
        return frozenset(found.scalars())

    async def page(self, request: PageRequest) -> Page[Organization]:
        """A page of organizations."""
        query = sa.select(organizations)
        return await fetch_page(
            self._connection, query, organizations.c.id, request, lambda row: Organization(**row._mapping)
        )


class EndpointsSql:
    """See `port.Endpoints`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, endpoint: Endpoint) -> None:
        """Store a new endpoint."""
        await self._connection.execute(endpoints.insert(), _endpoint_values(endpoint))

    async def get(self, endpoint_id: str, *, lock: bool = False) -> Endpoint | None:
        """One endpoint, locked where asked."""
        query = sa.select(endpoints).where(endpoints.c.id == endpoint_id, _present)
        if lock:
            query = query.with_for_update(key_share=True)
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else build_endpoint(row)

    async def update(self, endpoint: Endpoint) -> None:
        """Store every field."""
        statement = endpoints.update().where(endpoints.c.id == endpoint.id)
        await self._connection.execute(statement.values(_endpoint_values(endpoint)))

    async def page(self, organization_id: str, request: PageRequest) -> Page[Endpoint]:
        """A page of an organization's endpoints."""
        query = sa.select(endpoints).where(endpoints.c.organization_id == organization_id, _present)
        return await fetch_page(self._connection, query, endpoints.c.id, request, build_endpoint)

    async def recipients(self, organization_ids: Collection[str]) -> Sequence[Endpoint]:
        """All endpoints of the organizations; a share lock keeps a pause or a deletion until after our commit."""
        found = await self._connection.execute(_recipients, {"organization_ids": organization_ids})
        return [build_endpoint(row) for row in found]
