"""What is shown, as typed values: secrets masked, bodies left out. Pure."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from carehook.directory.authentication import MASK, Authentication
from carehook.ledger.records import (
    AttemptOutcome,
    Delivery,
    Endpoint,
    Lane,
    Organization,
    Role,
    StoredEvent,
    Token,
)
from carehook.ledger.states import DeliveryState, EndpointStatus, Ordering

View = TypeVar("View")


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class ListView(BaseModel, Generic[View]):
    """Some of a list, newest first. `next_cursor` gives the next part; null when there is none."""

    data: list[View]
    next_cursor: str | None


class OrganizationView(_View):
    """A customer that receives."""

    id: str
    name: str
    created_at: datetime


class CircuitState(StrEnum):
    """Whether requests go to an endpoint as they are due."""

    CLOSED = "closed"
    OPEN = "open"


class CircuitView(_View):
    """How it goes at an endpoint. While its circuit is open deliveries wait, and one request at a time is tried."""

    state: CircuitState
    failures: int = Field(description="Attempts that failed since the last success; 10 open the circuit.")
    failing_since: datetime | None = Field(description="When the first of them was made.")
    last_failure: str | None = Field(description="Why the last of them failed.")
    opened_at: datetime | None
    next_probe_at: datetime | None = Field(
        description="When an open circuit lets the next request through; null while the endpoint does not receive."
    )

    @property
    def in_a_word(self) -> str:
        """The same for a table."""
        return self.state

    @property
    def in_words(self) -> str:
        """The same for people."""
        if self.state is CircuitState.CLOSED:
            return f"closed, with {describe_failures(self.failures, self.last_failure)}" if self.failures else "closed"
        opened = f"open since {format_instant(self.opened_at)}"
        tried = f"; next try at {format_instant(self.next_probe_at)}" if self.next_probe_at else ""
        return f"{opened} after {describe_failures(self.failures, self.last_failure)}{tried}"


class EndpointView(_View):
    """One URL of an organization. Its secrets are masked."""

    id: str
    organization_id: str
    url: str
    description: str
    event_types: list[str] = Field(description="Empty for all.")
    status: EndpointStatus
    status_reason: str | None = Field(description="Why Carehook disabled it.")
    max_in_flight: int | None = Field(description="Requests in flight at most, over all workers; null for no limit.")
    rate_limit: float | None = Field(description="Requests a second at most, over all workers; null for no limit.")
    ordering: Ordering = Field(description="`patient`: a patient's deliveries go one after another, as accepted.")
    circuit: CircuitView
    signature_value: str = Field(description="Masked.")
    authentication: Authentication | None = Field(
        description="Its secrets are masked; null where they cannot be opened with this installation's key."
    )
    created_at: datetime
    updated_at: datetime


class EndpointCreatedView(EndpointView):
    """An endpoint with what the organization needs to verify requests, shown this once."""

    signing_secret: str = Field(description="`whsec_…`, or for v1a the public key `whpk_…`. Shown this once.")


class EventView(_View):
    """An accepted event, without its body."""

    id: str
    organization_id: str
    type: str
    occurred_on: int | float = Field(description="Unix time in seconds, as it was published.")
    is_test: bool
    accepted_at: datetime


class WaitKind(StrEnum):
    """What a delivery waits for."""

    SCHEDULE = "schedule"
    """The time of its next attempt."""
    CIRCUIT = "circuit"
    """An endpoint that fails: its circuit is open."""
    ORDER = "order"
    """Another delivery of the same patient, which goes first."""
    ENDPOINT = "endpoint"
    """An endpoint that is paused or disabled, or was resumed or deleted just now."""
    TURN = "turn"
    """A worker that has room for it, and the endpoint's own limits."""


class WaitView(_View):
    """What keeps a delivery from being attempted now."""

    kind: WaitKind
    detail: str = Field(description="In words.")
    since: datetime | None = Field(description="Since when, where that is known.")
    until: datetime | None = Field(description="Until when at least, where that is known.")
    delivery_id: str | None = Field(description="With `order`: the earlier delivery, if it waits for one.")

    @property
    def in_a_word(self) -> str:
        """The same for a table."""
        return self.kind

    @property
    def in_words(self) -> str:
        """The same for people."""
        return self.detail


class DeliveryView(_View):
    """One event for one endpoint."""

    id: str
    event_id: str
    event_type: str
    endpoint_id: str
    organization_id: str
    state: DeliveryState
    in_flight: bool
    attempt_count: int
    created_at: datetime
    due_at: datetime | None = Field(
        description="When the next attempt is due. Null while another delivery of its patient goes first."
    )
    last_attempt_at: datetime | None
    finished_at: datetime | None
    waits_for: WaitView | None = Field(description="Null while it is in flight, and once it is finished.")


class AttemptView(_View):
    """One HTTP exchange of a delivery."""

    id: str
    number: int
    started_at: datetime
    duration_ms: float
    outcome: AttemptOutcome
    status_code: int | None
    reason: str | None = Field(description="Why it was no success.")
    response_excerpt: str | None = Field(description="How the response of a failed attempt began.")


class EventDetailView(EventView):
    """An event with its deliveries."""

    deliveries: list[DeliveryView]


class DeliveryDetailView(DeliveryView):
    """A delivery with its attempts, first to last."""

    attempts: list[AttemptView]


class TokenView(_View):
    """An API token, without its secret."""

    id: str
    role: Role
    organization_id: str | None
    created_at: datetime
    revoked_at: datetime | None


def format_instant(instant: datetime | None) -> str:
    """An instant within a sentence."""
    return f"{instant:%Y-%m-%dT%H:%M:%SZ}" if instant else "an unknown time"


def describe_failures(count: int, last: str | None) -> str:
    """How often it failed, and why it did the last time."""
    times = "1 failure" if count == 1 else f"{count} failures in a row"
    return f"{times}, the last: {last}" if last else times


def view_organization(organization: Organization) -> OrganizationView:
    """An organization as it is shown."""
    return OrganizationView(id=organization.id, name=organization.name, created_at=organization.created_at)


def view_event(event: StoredEvent) -> EventView:
    """An event as it is shown."""
    return EventView(
        id=event.id,
        organization_id=event.organization_id,
        type=event.type,
        occurred_on=int(event.occurred_on) if float(event.occurred_on).is_integer() else event.occurred_on,
        is_test=event.is_test,
        accepted_at=event.created_at,
    )


def view_delivery(delivery: Delivery, waits_for: WaitView | None) -> DeliveryView:
    """A delivery as it is shown."""
    return DeliveryView(
        id=delivery.id,
        event_id=delivery.event_id,
        event_type=delivery.event_type,
        endpoint_id=delivery.endpoint_id,
        organization_id=delivery.organization_id,
        state=delivery.state,
        in_flight=delivery.lease_until is not None,
        attempt_count=delivery.attempt_count,
        created_at=delivery.created_at,
        due_at=delivery.due_at if delivery.state is DeliveryState.PENDING else None,
        last_attempt_at=delivery.last_attempt_at,
        finished_at=delivery.finished_at,
        waits_for=waits_for,
    )


def view_token(token: Token) -> TokenView:
    """A token as it is shown."""
    return TokenView(
        id=token.id,
        role=token.role,
        organization_id=token.organization_id,
        created_at=token.created_at,
        revoked_at=token.revoked_at,
    )


def view_circuit(lane: Lane, status: EndpointStatus) -> CircuitView:
    """The circuit of an endpoint as it is shown."""
    is_tried = status is EndpointStatus.ACTIVE
    return CircuitView(
        state=CircuitState.CLOSED if lane.opened_at is None else CircuitState.OPEN,
        failures=lane.failure_streak,
        failing_since=lane.failing_since,
        last_failure=lane.last_failure,
        opened_at=lane.opened_at,
        next_probe_at=lane.probe_at if is_tried else None,
    )


def view_endpoint(endpoint: Endpoint, lane: Lane, authentication: Authentication | None) -> EndpointView:
    """An endpoint as it is shown; `authentication` is None where its secrets do not open."""
    return EndpointView(
        id=endpoint.id,
        organization_id=endpoint.organization_id,
        url=endpoint.url,
        description=endpoint.description,
        event_types=list(endpoint.event_types),
        status=endpoint.status,
        status_reason=endpoint.status_reason,
        max_in_flight=endpoint.max_in_flight,
        rate_limit=endpoint.rate_limit,
        ordering=endpoint.ordering,
        circuit=view_circuit(lane, endpoint.status),
        signature_value=MASK,
        authentication=authentication,
        created_at=endpoint.created_at,
        updated_at=endpoint.updated_at,
    )
