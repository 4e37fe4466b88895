"""Reading: what API, console and command line ask for. A list takes the same few queries however long it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from carehook.clock import Clock
from carehook.cursors import encode_cursor
from carehook.directory.authentication import MASK
from carehook.directory.endpoints import EndpointWithSecrets
from carehook.directory.secrets import open_secrets
from carehook.insights.views import (
    AttemptView,
    DeliveryDetailView,
    DeliveryView,
    EndpointCreatedView,
    EndpointView,
    EventDetailView,
    EventView,
    ListView,
    OrganizationView,
    TokenView,
    View,
    view_delivery,
    view_endpoint,
    view_event,
    view_organization,
    view_token,
)
from carehook.insights.waits import explain_wait
from carehook.keyring import Keyring, KeyringError
from carehook.ledger.port import Ledger, Transaction
from carehook.ledger.records import Attempt, Backlog, Delivery, DeliveryFilter, Endpoint, Lane, Page, PageRequest
from carehook.ledger.states import is_final
from carehook.refusals import build_not_found

Row = TypeVar("Row")


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
            lanes = await snapshot.endpoints.lanes([endpoint.id for endpoint in page.rows])
        return _list(page, lambda endpoint: self._view_endpoint(endpoint, lanes[endpoint.id]))

    async def endpoint(self, endpoint_id: str) -> EndpointView:
        """One endpoint."""
        async with self._ledger.snapshot() as snapshot:
            endpoint = await snapshot.endpoints.get(endpoint_id)
            lanes = await snapshot.endpoints.lanes([endpoint_id])
        if endpoint is None:
            raise build_not_found("endpoint", endpoint_id)
        return self._view_endpoint(endpoint, lanes[endpoint_id])

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
            views = await self._view_deliveries(snapshot, deliveries)
        if event is None:
            raise build_not_found("event", event_id)
        return EventDetailView(**view_event(event).model_dump(), deliveries=views)

    async def deliveries(
        self, organization_id: str, only: DeliveryFilter, request: PageRequest
    ) -> ListView[DeliveryView]:
        """An organization's deliveries."""
        await self.organization(organization_id)
        async with self._ledger.snapshot() as snapshot:
            page = await snapshot.deliveries.page(organization_id, only, request)
            return ListView(data=await self._view_deliveries(snapshot, page.rows), next_cursor=page.next_cursor)

    async def delivery(self, delivery_id: str) -> DeliveryDetailView:
        """One delivery with its attempts."""
        async with self._ledger.snapshot() as snapshot:
            delivery = await snapshot.deliveries.get(delivery_id)
            if delivery is None:
                raise build_not_found("delivery", delivery_id)
            (view,) = await self._view_deliveries(snapshot, [delivery])
            attempts = await snapshot.deliveries.attempts(delivery_id)
        return DeliveryDetailView(
            **view.model_dump(),
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

    async def created(self, created: EndpointWithSecrets, *, reveal_signature_value: bool) -> EndpointCreatedView:
        """An endpoint whose new secrets are shown this once."""
        async with self._ledger.snapshot() as snapshot:
            lanes = await snapshot.endpoints.lanes([created.endpoint.id])
        view = view_endpoint(created.endpoint, lanes[created.endpoint.id], created.secrets.authentication)
        signature_value = created.secrets.signature_value.get_secret_value() if reveal_signature_value else MASK
        return EndpointCreatedView(
            **{name: getattr(view, name) for name in EndpointView.model_fields if name != "signature_value"},
            signature_value=signature_value,
            signing_secret=created.verification_secret.get_secret_value(),
        )

    def _view_endpoint(self, endpoint: Endpoint, lane: Lane) -> EndpointView:
        try:
            opened = open_secrets(endpoint.sealed_secrets, self._keyring, endpoint.id)
        except KeyringError:
            return view_endpoint(endpoint, lane, None)
        return view_endpoint(endpoint, lane, opened.authentication)

    async def _view_deliveries(self, snapshot: Transaction, rows: Sequence[Delivery]) -> list[DeliveryView]:
        """Deliveries with what they wait for, which takes no query where all are finished, and two for any number."""
        unfinished = [row.id for row in rows if not is_final(row.state)]
        prospects = await snapshot.deliveries.prospects(unfinished) if unfinished else {}
        now = self._clock()
        return [view_delivery(row, explain_wait(row, prospects.get(row.id), now)) for row in rows]

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
