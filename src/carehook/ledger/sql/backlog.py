"""What waits and what keeps it, over all organizations, read from the partial indexes alone."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from carehook.ledger.sql.tables import LEASED, WAITING, deliveries, endpoints, in_state, lanes
from carehook.ledger.states import DeliveryState, EndpointStatus


def _count(*which: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    return sa.select(sa.func.count()).select_from(deliveries).where(*which).scalar_subquery()


def _build_backlog() -> sa.Select[Any]:
    """The fields of a `Backlog`. Deliveries that have yet to follow their endpoint's status count as if they had."""
    lane_of = sa.select(lanes.c.endpoint_id).join(endpoints, lanes.c.endpoint_id == endpoints.c.id)
    is_active = endpoints.c.status == EndpointStatus.ACTIVE
    stops = endpoints.c.status.in_((EndpointStatus.PAUSED, EndpointStatus.DISABLED))
    unsettled = lane_of.where(lanes.c.unsettled_since.is_not(None))
    # What waits behind an open circuit, or is about to be held, says nothing of whether Carehook keeps up.
    untried = lane_of.where(sa.or_(lanes.c.opened_at.is_not(None), ~is_active))
    circuits = lane_of.where(lanes.c.opened_at.is_not(None), is_active).subquery()
    return sa.select(
        _count(WAITING) - _count(WAITING, deliveries.c.endpoint_id.in_(unsettled.where(~is_active))),
        _count(LEASED),
        _count(in_state(DeliveryState.HELD)) + _count(WAITING, deliveries.c.endpoint_id.in_(unsettled.where(stops))),
        sa.select(sa.func.min(deliveries.c.due_at))
        .where(WAITING, deliveries.c.endpoint_id.not_in(untried))
        .scalar_subquery(),
        sa.select(sa.func.count()).select_from(circuits).scalar_subquery(),
        sa.select(sa.func.count()).where(endpoints.c.status == EndpointStatus.DISABLED).scalar_subquery(),
    )


BACKLOG = _build_backlog()
