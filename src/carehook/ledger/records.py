"""Rows as values: what the ledger takes and gives back. Every instant is an aware UTC `datetime`.

Bodies, secrets, URLs (which may hold tokens) and medical data are left out of every `repr`, so that a log line cannot
leak them by accident.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar

from carehook.ledger.states import DeliveryState, EndpointStatus, Ordering, Transition

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """Some rows of a list, newest first, and where to go on: None when there are no more."""

    rows: Sequence[Row]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class PageRequest:
    """At most `limit` rows, those after `cursor` (the id that a former page ended with)."""

    limit: int = 50
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Organization:
    """A customer that receives."""

    id: str
    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One URL of an organization. No event types means all of them."""

    id: str
    organization_id: str
    url: str = field(repr=False)
    description: str
    event_types: tuple[str, ...]
    status: EndpointStatus
    status_reason: str | None
    sealed_secrets: bytes = field(repr=False)
    created_at: datetime
    updated_at: datetime
    max_in_flight: int | None = None
    """Requests in flight at most, over all workers; None leaves it to each worker's own limit."""
    rate_limit: float | None = None
    """Requests a second at most, over all workers."""
    ordering: Ordering = Ordering.NONE
    revision: int = 0
    """Grows with every change; the store counts it."""

    @property
    def is_limited(self) -> bool:
        """Whether it has limits that all workers together must keep."""
        return self.max_in_flight is not None or self.rate_limit is not None


@dataclass(frozen=True, slots=True)
class Lane:
    """How it goes at an endpoint: its failures since the last success, and its circuit breaker (see `circuit`)."""

    failure_streak: int = 0
    failing_since: datetime | None = None
    last_failure: str | None = None
    opened_at: datetime | None = None
    """Since when the circuit is open; None while it is closed."""
    probe_at: datetime | None = None
    """When an open circuit lets the next request through."""
    probes: int = 0
    """How many requests an open circuit let through in vain."""


@dataclass(frozen=True, slots=True)
class Prospect:
    """What decides when a delivery that is not finished goes on: its endpoint, how it goes there, who is before it."""

    endpoint: Endpoint
    lane: Lane
    earlier_delivery_id: str | None
    """The first that is not finished of those before it in the order of its patient; None where there is none."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An accepted event. `body` is what every attempt sends, byte for byte."""

    id: str
    organization_id: str
    type: str
    occurred_on: float
    body: bytes = field(repr=False)
    is_test: bool
    created_at: datetime
    patient_key: str | None = field(repr=False, default=None)
    """What tells the patient of this event from the organization's others; None where it is about none."""


@dataclass(frozen=True, slots=True)
class NewDelivery:
    """A delivery to be stored with its event; it is due at once, or held where its endpoint does not receive."""

    id: str
    event_id: str
    endpoint_id: str
    organization_id: str
    event_type: str
    state: DeliveryState
    created_at: datetime
    order_key: str | None = field(repr=False, default=None)
    """At an endpoint, deliveries of the same key go one after another, as their events were accepted."""


def build_delivery(delivery_id: str, event: StoredEvent, endpoint: Endpoint, created_at: datetime) -> NewDelivery:
    """A delivery: due at once, or held where the endpoint does not receive now; in order where that is asked for."""
    return NewDelivery(
        id=delivery_id,
        event_id=event.id,
        endpoint_id=endpoint.id,
        organization_id=event.organization_id,
        event_type=event.type,
        state=DeliveryState.PENDING if endpoint.status is EndpointStatus.ACTIVE else DeliveryState.HELD,
        created_at=created_at,
        order_key=event.patient_key if endpoint.ordering is Ordering.PATIENT else None,
    )


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one endpoint. While a request may be in flight `lease_until` says until when at the latest.

    One that is not finished and has no `due_at` waits for another of its order, and is due once that is over.
    """

    id: str
    event_id: str
    endpoint_id: str
    organization_id: str
    event_type: str
    state: DeliveryState
    due_at: datetime | None
    lease_until: datetime | None
    attempt_count: int
    failure_count: int
    created_at: datetime
    last_attempt_at: datetime | None
    finished_at: datetime | None


class AttemptOutcome(StrEnum):
    """How an attempt ended; the names of the values in `exchange`."""

    RESPONDED = "responded"
    UNREACHABLE = "unreachable"
    BLOCKED = "blocked"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One HTTP exchange of a delivery. `duration` is in seconds; `sealed_excerpt` how a failed response began."""

    id: str
    delivery_id: str
    number: int
    started_at: datetime
    duration: float
    outcome: AttemptOutcome
    status_code: int | None
    reason: str | None
    sealed_excerpt: bytes | None = field(repr=False, default=None)


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    """A delivery under lease, with all that is needed to attempt it. `lease_token` fences its result."""

    id: str
    lease_token: int
    lease_until: datetime
    attempt_count: int
    failure_count: int
    event_id: str
    event_type: str
    accepted_at: datetime
    body: bytes = field(repr=False)
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class FinishedAttempt:
    """What became of a claimed delivery. `due_at` is set for RESCHEDULE alone.

    `spends_retry` is false where the receiver is not to blame. `disable_reason` disables the endpoint as well.
    """

    delivery_id: str
    endpoint_id: str
    lease_token: int
    attempt: Attempt
    transition: Transition
    due_at: datetime | None
    spends_retry: bool
    disable_reason: str | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the endpoint took it."""
        return self.transition is Transition.SUCCEED

    @property
    def blames_endpoint(self) -> bool:
        """Whether it failed, and not by our doing."""
        return not self.succeeded and self.attempt.outcome is not AttemptOutcome.INTERRUPTED


@dataclass(frozen=True, slots=True)
class Settled:
    """How many deliveries have just followed their endpoint's status, and whether now all are where it has them."""

    moved: int
    is_complete: bool


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many deliveries wait, are in flight and are held, and since when the oldest waiting one has been due.

    And what keeps them: how many active endpoints have an open circuit, and how many endpoints are disabled.
    """

    waiting: int
    in_flight: int
    held: int
    oldest_due_at: datetime | None
    circuits_open: int = 0
    endpoints_disabled: int = 0


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Which deliveries of an organization; None means any."""

    state: DeliveryState | None = None
    endpoint_id: str | None = None
    event_type: str | None = None
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """The first answer to an idempotency key, with a digest of the request that it answered."""

    fingerprint: str
    answer: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Known:
    """What the store knows when events are accepted: which organizations there are, their endpoints, former answers."""

    organizations: frozenset[str]
    endpoints: Sequence[Endpoint]
    answered: Mapping[tuple[str, str], Answered]


@dataclass(frozen=True, slots=True)
class Additions:
    """What accepting adds to the store. `answers` are by organization and idempotency key."""

    events: Sequence[StoredEvent]
    deliveries: Sequence[NewDelivery]
    answers: Mapping[tuple[str, str], Answered]


class Role(StrEnum):
    """What a token may do."""

    OPERATOR = "operator"
    PUBLISHER = "publisher"


@dataclass(frozen=True, slots=True)
class Token:
    """An API token without its secret, of which only a digest is stored. A publisher's is bound to an organization."""

    id: str
    role: Role
    organization_id: str | None
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class PatientRow:
    """A patient of an organization, with the medical history as the contract has it."""

    organization_id: str
    code: str
    history: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ProfessionalRow:
    """A professional as `scope` knows them: an organization's id, or PLATFORM for all."""

    scope: str
    id: str
    name: str = field(repr=False)
    avatar: str = field(repr=False)


PLATFORM = "platform"
"""The scope of a professional whom every organization sees."""


@dataclass(frozen=True, slots=True)
class ConsultationRow:
    """A consultation, open until `finished_event_id` names the event that told of its end."""

    organization_id: str
    id: str
    type: str
    patient_code: str
    professional_id: str
    speciality: Mapping[str, Any] = field(repr=False)
    start_date: datetime = field(repr=False)
    end_date: datetime | None = field(repr=False)
    finished_event_id: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ReportRow:
    """A report of a consultation and the event that told of it; `position` is its place among them, from 1."""

    organization_id: str
    consultation_id: str
    id: str
    position: int
    type: str
    content: Mapping[str, Any] = field(repr=False)
    event_id: str


@dataclass(frozen=True, slots=True)
class PrescriptionRow:
    """A prescription of a consultation; `position` is its place among them, from 1."""

    organization_id: str
    consultation_id: str
    id: str
    position: int
    active_substances: Sequence[str] = field(repr=False)
