"""What deliveries that are not finished wait for: two queries for any number of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from carehook.ledger.records import Endpoint, Lane, Prospect
from carehook.ledger.sql.directory import build_endpoint
from carehook.ledger.sql.statements import among
from carehook.ledger.sql.tables import UNFINISHED_STATES, deliveries, endpoints, holds_back, lanes

_lane_columns = [lanes.c[field.name] for field in dataclasses.fields(Lane)]


def _build_first_before() -> sa.ScalarSelect[str]:
    """The first delivery that is before this one in the order of its patient and not over."""
    earlier = deliveries.alias("earlier")
    return (
        sa.select(earlier.c.id)
        .where(
            earlier.c.endpoint_id == deliveries.c.endpoint_id,
            earlier.c.order_key == deliveries.c.order_key,
            earlier.c.position < deliveries.c.position,
            holds_back(earlier),
        )
        .order_by(earlier.c.position)
        .limit(1)
        .correlate(deliveries)
        .scalar_subquery()
    )


_first_before = _build_first_before()


async def fetch_prospects(connection: AsyncConnection, delivery_ids: Collection[str]) -> Mapping[str, Prospect]:
    """The prospect of each of the deliveries that is not finished."""
    unfinished = among(deliveries.c.id, delivery_ids) & deliveries.c.state.in_(UNFINISHED_STATES)
    query = sa.select(deliveries.c.id, deliveries.c.endpoint_id, _first_before).where(unfinished)
    waiting = (await connection.execute(query)).all()
    found = await _fetch_endpoints(connection, {endpoint_id for _, endpoint_id, _ in waiting})
    return {
        delivery_id: Prospect(*found[endpoint_id], earlier_delivery_id)
        for delivery_id, endpoint_id, earlier_delivery_id in waiting
    }


async def _fetch_endpoints(
    connection: AsyncConnection, endpoint_ids: Collection[str]
) -> Mapping[str, tuple[Endpoint, Lane]]:
    query = sa.select(endpoints, *_lane_columns).join_from(endpoints, lanes).where(among(endpoints.c.id, endpoint_ids))
    width = len(endpoints.c)
    return {row.id: (build_endpoint(row[:width]), Lane(*row[width:])) for row in await connection.execute(query)}
