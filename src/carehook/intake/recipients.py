"""Who receives an event, decided once, when it is accepted. Pure but for the ids it names things by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from hashlib import sha256

from carehook.events import AnyEvent, build_body
from carehook.ids import DELIVERY, EVENT, new_id
from carehook.ledger.records import Endpoint, NewDelivery, StoredEvent, build_delivery
from carehook.ledger.states import EndpointStatus


def freeze_event(organization_id: str, event: AnyEvent, now: datetime, *, is_test: bool = False) -> StoredEvent:
    """The event as it is stored. Its body is serialised here and nowhere else."""
    return StoredEvent(
        id=new_id(EVENT),
        organization_id=organization_id,
        type=event.type,
        occurred_on=event.occurred_on,
        body=build_body(event),
        is_test=is_test,
        created_at=now,
        patient_key=_build_patient_key(organization_id, event.patient_code),
    )


def _build_patient_key(organization_id: str, patient_code: str | None) -> str | None:
    """A digest, so that tables and indexes of deliveries hold no patient's code."""
    if patient_code is None:
        return None
    return sha256(f"{organization_id}\0{patient_code}".encode()).hexdigest()[:32]


def match_recipients(event: StoredEvent, endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """The endpoints that receive an event: its organization's, those subscribed to its type or to all."""
    return [
        endpoint
        for endpoint in endpoints
        if endpoint.organization_id == event.organization_id
        and endpoint.status is not EndpointStatus.DELETED
        and (not endpoint.event_types or event.type in endpoint.event_types)
    ]


def build_deliveries(event: StoredEvent, recipients: Sequence[Endpoint]) -> list[NewDelivery]:
    """A delivery for each recipient."""
    return [build_delivery(new_id(DELIVERY), event, endpoint, event.created_at) for endpoint in recipients]
