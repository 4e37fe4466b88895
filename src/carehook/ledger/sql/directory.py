"""Organizations and their endpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from carehook.ledger.records import Endpoint, Lane, Organization, Page, PageRequest
from carehook.ledger.sql.order import set_ordering
from carehook.ledger.sql.statements import Ids, Prepared, among, fetch_page
from carehook.ledger.sql.tables import endpoints, lanes, organizations, positions
from carehook.ledger.states import EndpointStatus, Ordering

_organization_columns = [organizations.c[field.name] for field in dataclasses.fields(Organization)]
_lane_columns = [lanes.c[field.name] for field in dataclasses.fields(Lane)]
_present = endpoints.c.status != EndpointStatus.DELETED

_organization_ids = sa.bindparam("organization_ids", type_=Ids())
_existing = sa.select(organizations.c.id).where(among(organizations.c.id, _organization_ids))
# Whoever changes an endpoint changes the revision of its organization, and so waits for this.
_fixed = _existing.order_by(organizations.c.id).with_for_update(read=True)
_recipients = (
    sa.select(endpoints).where(among(endpoints.c.organization_id, _organization_ids), _present).order_by(endpoints.c.id)
)
FIX_ORGANIZATIONS, RECIPIENTS = Prepared(_fixed), Prepared(_recipients)
"""Within a session: those of the organizations that there are, and then their endpoints, which stay as they are."""


def build_endpoint(row: Sequence[Any]) -> Endpoint:
    """The endpoint that a row of the table holds, its columns in their order."""
    endpoint = Endpoint(*row)
    return dataclasses.replace(
        endpoint,
        event_types=tuple(endpoint.event_types),
        status=EndpointStatus(endpoint.status),
        ordering=Ordering(endpoint.ordering),
    )


def _endpoint_values(endpoint: Endpoint) -> dict[str, Any]:
    """All that is stored of an endpoint but its revision."""
    values = {field.name: getattr(endpoint, field.name) for field in dataclasses.fields(endpoint)}
    del values["revision"]
    return {**values, "event_types": list(endpoint.event_types)}


def _revise_organization(organization_id: str) -> sa.Update:
    revision = organizations.c.revision + 1
    return organizations.update().where(organizations.c.id == organization_id).values(revision=revision)


class OrganizationsSql:
    """See `port.Organizations`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, organization: Organization) -> None:
        """Store a new organization."""
        await self._connection.execute(organizations.insert(), dataclasses.asdict(organization))

    async def get(self, organization_id: str) -> Organization | None:
        """One organization."""
        query = sa.select(*_organization_columns).where(organizations.c.id == organization_id)
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else Organization(**row._mapping)

    async def existing(self, organization_ids: Collection[str]) -> frozenset[str]:
        """Those of the ids that there are."""
        found = await self._connection.execute(_existing, {"organization_ids": organization_ids})
        return frozenset(found.scalars())

    async def page(self, request: PageRequest) -> Page[Organization]:
        """A page of organizations."""
        query = sa.select(*_organization_columns)
        return await fetch_page(
            self._connection, query, organizations.c.id, request, lambda row: Organization(**row._mapping)
        )


class EndpointsSql:
    """See `port.Endpoints`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, endpoint: Endpoint) -> None:
        """Store a new endpoint."""
        await self._connection.execute(_revise_organization(endpoint.organization_id))
        await self._connection.execute(endpoints.insert(), _endpoint_values(endpoint))
        await self._connection.execute(lanes.insert(), {"endpoint_id": endpoint.id})
        await self._connection.execute(positions.insert(), {"endpoint_id": endpoint.id})

    async def get(self, endpoint_id: str, *, lock: bool = False) -> Endpoint | None:
        """One endpoint, locked where asked."""
        query = sa.select(endpoints).where(endpoints.c.id == endpoint_id, _present)
        if lock:
            query = query.with_for_update(key_share=True)
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else build_endpoint(row)

    async def update(self, endpoint: Endpoint) -> None:
        """Store every field but the revision."""
        query = sa.select(endpoints.c.url, endpoints.c.status, endpoints.c.ordering).where(
            endpoints.c.id == endpoint.id
        )
        before = (await self._connection.execute(query)).one()
        await self._connection.execute(_revise_organization(endpoint.organization_id))
        statement = endpoints.update().where(endpoints.c.id == endpoint.id)
        values = {**_endpoint_values(endpoint), "revision": endpoints.c.revision + 1}
        # Were its id set, to what it is, SQLite would look through all deliveries for those that refer to another.
        del values["id"]
        await self._connection.execute(statement.values(values))
        # The order first: its position is locked before the lane.
        if before.ordering != endpoint.ordering:
            await set_ordering(self._connection, endpoint.id, endpoint.ordering)
        if before.status != endpoint.status:
            await self._change_lane(endpoint.id, {"unsettled_since": endpoint.updated_at})
        if before.url != endpoint.url:
            await self.close_circuit(endpoint.id)

    async def lanes(self, endpoint_ids: Collection[str]) -> Mapping[str, Lane]:
        """How it goes at each of the endpoints."""
        query = sa.select(lanes.c.endpoint_id, *_lane_columns).where(among(lanes.c.endpoint_id, endpoint_ids))
        return {endpoint_id: Lane(*rest) for endpoint_id, *rest in await self._connection.execute(query)}

    async def close_circuit(self, endpoint_id: str) -> None:
        """Forget its failures."""
        await self._change_lane(endpoint_id, dataclasses.asdict(Lane()))

    async def _change_lane(self, endpoint_id: str, values: Mapping[str, Any]) -> None:
        await self._connection.execute(lanes.update().where(lanes.c.endpoint_id == endpoint_id).values(values))

    async def try_now(self, endpoint_id: str, now: datetime) -> None:
        """Let the next request through an open circuit now."""
        is_open = (lanes.c.endpoint_id == endpoint_id) & lanes.c.opened_at.is_not(None)
        await self._connection.execute(lanes.update().where(is_open).values(probe_at=now))

    async def page(self, organization_id: str, request: PageRequest) -> Page[Endpoint]:
        """A page of an organization's endpoints."""
        query = sa.select(endpoints).where(endpoints.c.organization_id == organization_id, _present)
        return await fetch_page(self._connection, query, endpoints.c.id, request, build_endpoint)

    async def recipients(self, organization_ids: Collection[str]) -> Sequence[Endpoint]:
        """All endpoints of the organizations; a pause or a deletion waits until after our commit."""
        await self._connection.execute(_fixed, {"organization_ids": organization_ids})
        found = await self._connection.execute(_recipients, {"organization_ids": organization_ids})
        return [build_endpoint(row) for row in found]
