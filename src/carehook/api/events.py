"""Events that were accepted: what happened, without its body, and what became of it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from carehook.api.context import Caller, Carehook, EventId, OrganizationId, build_id_pattern, may_see
from carehook.api.endpoints import DeliveriesDueView
from carehook.api.paging import PageQuery, build_list
from carehook.api.routes import MemberRoute, OperatorRoute, TokenRoute, build_router
from carehook.ids import ENDPOINT, EVENT
from carehook.insights import EventDetailView, EventView, ListView
from carehook.refusals import build_not_found

members = build_router(MemberRoute, "Events")
callers = build_router(TokenRoute, "Events")
operators = build_router(OperatorRoute, "Events")


class Resend(BaseModel):
    """To which endpoint of the organization; by default to those that the event was accepted for."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    endpoint_id: Annotated[str | None, Field(pattern=build_id_pattern(ENDPOINT))] = None


@members.get("/v1/organizations/{organization_id}/events")
async def list_events(
    organization_id: OrganizationId, page: Annotated[PageQuery, Query()], carehook: Carehook
) -> ListView[EventView]:
    """List an organization's events, newest first."""
    return build_list(await carehook.insights.events(organization_id, page.read(EVENT)))


@callers.get("/v1/events/{event_id}")
async def get_event(event_id: EventId, caller: Caller, carehook: Carehook) -> EventDetailView:
    """Show one event with its deliveries."""
    event = await carehook.insights.event(event_id)
    if not may_see(caller, event.organization_id):
        raise build_not_found("event", event_id)
    return event


@operators.post("/v1/events/{event_id}/resend", status_code=202)
async def resend_event(event_id: EventId, carehook: Carehook, resend: Resend | None = None) -> DeliveriesDueView:
    """Send an event again, whether it arrived or not, with the same body and `webhook-id`."""
    deliveries = await carehook.interventions.resend(event_id, resend.endpoint_id if resend else None)
    return DeliveriesDueView(deliveries=deliveries)
