"""Endpoints: the URLs of organizations, for the support team alone."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from fastapi import Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict
from pydantic_core import PydanticCustomError

from carehook.api.context import Carehook, EndpointId, EventTypeName, OrganizationId
from carehook.api.paging import PageQuery, build_list
from carehook.api.routes import OperatorRoute, build_router
from carehook.directory.endpoints import EndpointChanges, NewEndpoint
from carehook.directory.secrets import ROTATION_OVERLAP
from carehook.ids import ENDPOINT
from carehook.insights import EndpointCreatedView, EndpointView, ListView

router = build_router(OperatorRoute, "Endpoints")

_RFC_3339: Final = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class RotateSecret(_Body):
    """How long the signing secret that is replaced goes on signing beside the new one."""

    overlap_seconds: Annotated[
        int, Strict(), Field(ge=0, le=604_800, description="0 ends it at once; 24 hours by default.")
    ] = int(ROTATION_OVERLAP.total_seconds())


class SendExample(_Body):
    """Whose example is sent; by default that of the first event type the endpoint is subscribed to."""

    event_type: EventTypeName | None = None


def _read_instant(value: object) -> datetime:
    """Read an RFC 3339 date-time as an aware UTC one."""
    try:
        if isinstance(value, str) and _RFC_3339.fullmatch(value):
            # A leap second is the end of its minute.
            return datetime.fromisoformat(re.sub(r"(?<=:\d\d:)60", "59", value.upper())).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise PydanticCustomError("instant", "must be an RFC 3339 date and time such as 2024-01-01T00:00:00Z")


class Recover(_Body):
    """Since when deliveries that failed are attempted again."""

    since: Annotated[
        datetime, BeforeValidator(_read_instant), Field(description="RFC 3339.", examples=["2024-01-01T00:00:00Z"])
    ]


class ExampleSentView(BaseModel):
    """The event that holds the example, and its delivery."""

    event_id: str
    delivery_id: str


class DeliveriesDueView(BaseModel):
    """What was made due."""

    deliveries: int = Field(description="How many deliveries are attempted now.")


@router.post("/v1/organizations/{organization_id}/endpoints", status_code=201)
async def create_endpoint(organization_id: OrganizationId, new: NewEndpoint, carehook: Carehook) -> EndpointCreatedView:
    """Register an endpoint. The answer holds its `signature_value` and its `signing_secret`, this once."""
    created = await carehook.endpoints.register(organization_id, new)
    return await carehook.insights.created(created, reveal_signature_value=True)


@router.get("/v1/organizations/{organization_id}/endpoints")
async def list_endpoints(
    organization_id: OrganizationId, page: Annotated[PageQuery, Query()], carehook: Carehook
) -> ListView[EndpointView]:
    """List an organization's endpoints, newest first."""
    return build_list(await carehook.insights.endpoints(organization_id, page.read(ENDPOINT)))


@router.get("/v1/endpoints/{endpoint_id}")
async def get_endpoint(endpoint_id: EndpointId, carehook: Carehook) -> EndpointView:
    """Show one endpoint, its secrets masked."""
    return await carehook.insights.endpoint(endpoint_id)


@router.patch("/v1/endpoints/{endpoint_id}", responses={409: {}})
async def change_endpoint(endpoint_id: EndpointId, changes: EndpointChanges, carehook: Carehook) -> EndpointView:
    """Change what is named; what is left out stays.

    Every request that begins more than 3 seconds after the answer goes by the new values.
    Null takes `max_in_flight` and `rate_limit` away; any other field stays. `ordering` cannot be changed while more
    than 100,000 deliveries of the endpoint are not finished.
    """
    await carehook.endpoints.change(endpoint_id, changes)
    return await carehook.insights.endpoint(endpoint_id)


@router.delete("/v1/endpoints/{endpoint_id}", status_code=204)
async def delete_endpoint(endpoint_id: EndpointId, carehook: Carehook) -> None:
    """Delete an endpoint and its secrets. Its unfinished deliveries are cancelled; their history stays.

    A request that begins within 3 seconds after the answer, or began before it, may still arrive.
    Of a long backlog the last are cancelled by the workers, some time later.
    """
    await carehook.endpoints.delete(endpoint_id)


@router.post("/v1/endpoints/{endpoint_id}/pause", responses={409: {}})
async def pause_endpoint(endpoint_id: EndpointId, carehook: Carehook) -> EndpointView:
    """Send nothing to it until it is resumed; its deliveries are held.

    A request that begins within 3 seconds after the answer, or began before it, may still arrive.
    Of a long backlog the last are marked so by the workers, some time later; none of them is sent meanwhile.
    """
    await carehook.endpoints.pause(endpoint_id)
    return await carehook.insights.endpoint(endpoint_id)


@router.post("/v1/endpoints/{endpoint_id}/resume")
async def resume_endpoint(endpoint_id: EndpointId, carehook: Carehook) -> EndpointView:
    """Send to it again, whether it was paused or disabled; what was held goes on, and its circuit is closed.

    A long backlog goes on part by part, the oldest first.
    """
    await carehook.endpoints.resume(endpoint_id)
    return await carehook.insights.endpoint(endpoint_id)


@router.post("/v1/endpoints/{endpoint_id}/rotate-secret")
async def rotate_secret(
    endpoint_id: EndpointId, carehook: Carehook, rotate: RotateSecret | None = None
) -> EndpointCreatedView:
    """Give it a new signing secret, shown this once. Until the overlap ends, requests carry both signatures.

    Requests that begin within 3 seconds after the answer may still carry the old one alone.
    """
    overlap = timedelta(seconds=(rotate or RotateSecret()).overlap_seconds)
    rotated = await carehook.endpoints.rotate_secret(endpoint_id, overlap)
    return await carehook.insights.created(rotated, reveal_signature_value=False)


@router.post("/v1/endpoints/{endpoint_id}/test", status_code=202, responses={409: {}})
async def send_example(
    endpoint_id: EndpointId, carehook: Carehook, example: SendExample | None = None
) -> ExampleSentView:
    """Send an event type's example to this endpoint alone, to see whether it receives."""
    sent = await carehook.examples.send(endpoint_id, example.event_type if example else None)
    return ExampleSentView(event_id=sent.event_id, delivery_id=sent.delivery_id)


@router.post("/v1/endpoints/{endpoint_id}/recover", status_code=202, responses={409: {}})
async def recover_endpoint(endpoint_id: EndpointId, recover: Recover, carehook: Carehook) -> DeliveriesDueView:
    """Attempt now all that failed since an instant, as after an outage of the receiver."""
    return DeliveriesDueView(deliveries=await carehook.interventions.recover(endpoint_id, recover.since))
