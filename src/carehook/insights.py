"""What API, console and command line read: typed values, ready to show: secrets masked, bodies left out."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from carehook.clock import Clock
from carehook.cursors import encode_cursor
from carehook.directory.authentication import MASK, Authentication
from carehook.directory.endpoints import EndpointWithSecrets
from carehook.directory.secrets import open_secrets
from carehook.keyring import Keyring, KeyringError
from carehook.ledger.port import Ledger
from carehook.ledger.records import (
    Attempt,
    AttemptOutcome,
    Backlog,
    Delivery,
    DeliveryFilter,
    Endpoint,
    Organization,
    Page,
    PageRequest,
    Role,
    StoredEvent,
    Token,
)
from carehook.ledger.states import DeliveryState, EndpointStatus
from carehook.refusals import build_not_found

View = TypeVar("View")
Row = TypeVar("Row")


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


class EndpointView(_View):
    """One URL of an organization. Its secrets are masked."""

    id: str
    organization_id: str
    url: str
    description: str
    event_types: list[str] = Field(description="Empty for all.")
    status: EndpointStatus
    status_reason: str | None = Field(description="Why Carehook disabled it.")
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
    due_at: datetime | None = Field(description="When the next attempt is due.")
    last_attempt_at: datetime | None
    finished_at: datetime | None


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


class Insights:
    """Reads. Every method that takes an id raises `NotFound` where it names nothing."""

    def __init__(self, ledger: Ledger, keyring: Keyring, clock: Clock) -> None:
        self._ledger = ledger
        self._keyring = keyring
        self._clock = clock

    async def organizations(self, request: PageRequest) -> ListView[OrganizationView]:
        """All organizations."""
        async with self._ledger.snapshot() as snapshot:
            return _list(await snapshot.organizations.page(request), view_organization)

    async def organization(self, organization_id: str) -> OrganizationView:
        """One organization."""
        async with self._ledger.snapshot() as snapshot:
            organization = await snapshot.organizations.get(organization_id)
        if organization is None:
            raise build_not_found("organization", organization_id)
        return view_organization(organization)

    async def endpoints(self, organization_id: str, request: PageRequest) -> ListView[EndpointView]:
        """An organization's endpoints."""
        await self.organization(organization_id)
        async with self._ledger.snapshot() as snapshot:
            page = await snapshot.endpoints.page(organization_id, request)
        return _list(page, self.view_endpoint)

    async def endpoint(self, endpoint_id: str) -> EndpointView:
        """One endpoint."""
        async with self._ledger.snapshot() as snapshot:
            endpoint = await snapshot.endpoints.get(endpoint_id)
        if endpoint is None:
            raise build_not_found("endpoint", endpoint_id)
        return self.view_endpoint(endpoint)

    async def events(self, organization_id: str, request: PageRequest) -> ListView[EventView]:
        """An organization's events."""
        await self.organization(organization_id)
        async with self._ledger.snapshot() as snapshot:
            return _list(await snapshot.events.page(organization_id, request), view_event)

    async def event(self, event_id: str) -> EventDetailView:
        """One event with its deliveries."""
        async with self._ledger.snapshot() as snapshot:
            event = await snapshot.events.get(event_id)
            deliveries = await snapshot.deliveries.of_event(event_id)
        if event is None:
            raise build_not_found("event", event_id)
        return EventDetailView(
            **view_event(event).model_dump(), deliveries=[view_delivery(delivery) for delivery in deliveries]
        )

    async def deliveries(
        self, organization_id: str, only: DeliveryFilter, request: PageRequest
    ) -> ListView[DeliveryView]:
        """An organization's deliveries."""
        await self.organization(organization_id)
        async with self._ledger.snapshot() as snapshot:
            page = await snapshot.deliveries.page(organization_id, only, request)
        return _list(page, view_delivery)

    async def delivery(self, delivery_id: str) -> DeliveryDetailView:
        """One delivery with its attempts."""
        async with self._ledger.snapshot() as snapshot:
            delivery = await snapshot.deliveries.get(delivery_id)
            attempts = await snapshot.deliveries.attempts(delivery_id)
        if delivery is None:
            raise build_not_found("delivery", delivery_id)
        return DeliveryDetailView(
            **view_delivery(delivery).model_dump(),
            attempts=[self._view_attempt(attempt) for attempt in attempts],
        )

    async def tokens(self, request: PageRequest) -> ListView[TokenView]:
        """All API tokens."""
        async with self._ledger.snapshot() as snapshot:
            return _list(await snapshot.tokens.page(request), view_token)

    async def backlog(self) -> Backlog:
        """What waits."""
        async with self._ledger.snapshot() as snapshot:
            return await snapshot.deliveries.backlog()

    def view_endpoint(self, endpoint: Endpoint) -> EndpointView:
        """An endpoint as it is shown."""
        try:
            opened = open_secrets(endpoint.sealed_secrets, self._keyring, endpoint.id)
        except KeyringError:
            return _view_endpoint(endpoint, None)
        return _view_endpoint(endpoint, opened.authentication)

    def view_created(self, created: EndpointWithSecrets, *, reveal_signature_value: bool) -> EndpointCreatedView:
        """An endpoint whose new secrets are shown this once."""
        view = _view_endpoint(created.endpoint, created.secrets.authentication)
        signature_value = created.secrets.signature_value.get_secret_value() if reveal_signature_value else MASK
        return EndpointCreatedView(
            **{name: getattr(view, name) for name in EndpointView.model_fields if name != "signature_value"},
            signature_value=signature_value,
            signing_secret=created.verification_secret.get_secret_value(),
        )

    def _view_attempt(self, attempt: Attempt) -> AttemptView:
        return AttemptView(
            id=attempt.id,
            number=attempt.number,
            started_at=attempt.started_at,
            duration_ms=round(attempt.duration * 1000, 3),
            outcome=attempt.outcome,
            status_code=attempt.status_code,
            reason=attempt.reason,
            response_excerpt=self._open_excerpt(attempt),
        )

    def _open_excerpt(self, attempt: Attempt) -> str | None:
        if attempt.sealed_excerpt is None:
            return None
        try:
            excerpt = self._keyring.open(attempt.sealed_excerpt, context=f"excerpt:{attempt.delivery_id}")
        except KeyringError:
            return None
        return _build_printable(excerpt.decode("utf-8", "replace"))


def _build_printable(text: str) -> str:
    """The text without what a stranger could make a terminal do."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)


def _list(page: Page[Row], view: Callable[[Row], View]) -> ListView[View]:
    return ListView(data=[view(row) for row in page.rows], next_cursor=page.next_cursor)


def build_list(page: ListView[View]) -> ListView[View]:
    """A list as clients see it, with a cursor that they cannot take for an id."""
    if page.next_cursor is None:
        return page
    return page.model_copy(update={"next_cursor": encode_cursor(page.next_cursor)})


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


def view_delivery(delivery: Delivery) -> DeliveryView:
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


def _view_endpoint(endpoint: Endpoint, authentication: Authentication | None) -> EndpointView:
    return EndpointView(
        id=endpoint.id,
        organization_id=endpoint.organization_id,
        url=endpoint.url,
        description=endpoint.description,
        event_types=list(endpoint.event_types),
        status=endpoint.status,
        status_reason=endpoint.status_reason,
        signature_value=MASK,
        authentication=authentication,
        created_at=endpoint.created_at,
        updated_at=endpoint.updated_at,
    )
