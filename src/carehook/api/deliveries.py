"""Deliveries: one event for one endpoint, with every attempt."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import Field

from carehook.api.context import (
    Caller,
    Carehook,
    DeliveryId,
    EventTypeName,
    OrganizationId,
    build_id_pattern,
    may_see,
)
from carehook.api.paging import PageQuery, build_list
from carehook.api.routes import MemberRoute, OperatorRoute, TokenRoute, build_router
from carehook.ids import DELIVERY, ENDPOINT, EVENT
from carehook.insights import DeliveryDetailView, DeliveryView, ListView
from carehook.ledger.records import DeliveryFilter
from carehook.ledger.states import DeliveryState
from carehook.refusals import build_not_found

members = build_router(MemberRoute, "Deliveries")
callers = build_router(TokenRoute, "Deliveries")
operators = build_router(OperatorRoute, "Deliveries")


class DeliveryQuery(PageQuery):
    """Which deliveries; those that match all that is given."""

    state: DeliveryState | None = None
    endpoint_id: Annotated[
        str | None, Field(pattern=build_id_pattern(ENDPOINT), description="An endpoint, deleted or not.")
    ] = None
    event_type: EventTypeName | None = None
    event_id: Annotated[str | None, Field(pattern=build_id_pattern(EVENT))] = None


@members.get("/v1/organizations/{organization_id}/deliveries")
async def list_deliveries(
    organization_id: OrganizationId, query: Annotated[DeliveryQuery, Query()], carehook: Carehook
) -> ListView[DeliveryView]:
    """List an organization's deliveries, newest first."""
    only = DeliveryFilter(query.state, query.endpoint_id, query.event_type, query.event_id)
    return build_list(await carehook.insights.deliveries(organization_id, only, query.read(DELIVERY)))


@callers.get("/v1/deliveries/{delivery_id}")
async def get_delivery(delivery_id: DeliveryId, caller: Caller, carehook: Carehook) -> DeliveryDetailView:
    """Show one delivery with its attempts, first to last."""
    delivery = await carehook.insights.delivery(delivery_id)
    if not may_see(caller, delivery.organization_id):
        raise build_not_found("delivery", delivery_id)
    return delivery


@operators.post("/v1/deliveries/{delivery_id}/retry", status_code=202, responses={409: {}})
async def retry_delivery(delivery_id: DeliveryId, carehook: Carehook) -> DeliveryDetailView:
    """Attempt now a delivery that has not succeeded, with its schedule begun anew."""
    await carehook.interventions.retry(delivery_id)
    return await carehook.insights.delivery(delivery_id)


@operators.post("/v1/deliveries/{delivery_id}/cancel", responses={409: {}})
async def cancel_delivery(delivery_id: DeliveryId, carehook: Carehook) -> DeliveryDetailView:
    """Send a delivery no more.

    A request that begins within 3 seconds after the answer, or began before it, may still arrive.
    """
    await carehook.interventions.cancel(delivery_id)
    return await carehook.insights.delivery(delivery_id)
