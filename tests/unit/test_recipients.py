"""Who receives an event is decided by organization, event type and status, and by nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product

import pytest

from carehook.events import CATALOGUE, build_body
from carehook.intake.recipients import build_deliveries, freeze_event, match_recipients
from carehook.ledger.records import Endpoint, StoredEvent
from carehook.ledger.states import DeliveryState, EndpointStatus

NOW = datetime(2024, 1, 1, tzinfo=UTC)
REPORT, FINISHED = "patient_report_sent", "patient_consultation_finished"


def build_endpoint(
    organization: str = "org_1", event_types: tuple[str, ...] = (), status: EndpointStatus = EndpointStatus.ACTIVE
) -> Endpoint:
    return Endpoint(
        id=f"ep_{organization}_{status}",
        organization_id=organization,
        url="https://hospital.example/",
        description="",
        event_types=event_types,
        status=status,
        status_reason=None,
        sealed_secrets=b"",
        created_at=NOW,
        updated_at=NOW,
    )


def build_event(event_type: str = REPORT) -> StoredEvent:
    entry = CATALOGUE[event_type]
    return freeze_event("org_1", entry.model.model_validate(entry.example), NOW)


@pytest.mark.parametrize(
    ("organization", "event_types", "status"),
    list(product(("org_1", "org_2"), ((), (REPORT,), (FINISHED,), (REPORT, FINISHED)), EndpointStatus)),
)
def test_recipients(organization: str, event_types: tuple[str, ...], status: EndpointStatus) -> None:
    endpoint = build_endpoint(organization, event_types, status)
    receives = organization == "org_1" and event_types != (FINISHED,) and status != "deleted"
    assert match_recipients(build_event(), [endpoint]) == ([endpoint] if receives else [])


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (EndpointStatus.ACTIVE, DeliveryState.PENDING),
        (EndpointStatus.PAUSED, DeliveryState.HELD),
        (EndpointStatus.DISABLED, DeliveryState.HELD),
    ],
)
def test_a_delivery_waits_where_its_endpoint_does_not_receive(status: EndpointStatus, state: DeliveryState) -> None:
    event = build_event()
    (delivery,) = build_deliveries(event, [build_endpoint(status=status)])
    assert (delivery.state, delivery.event_id, delivery.event_type) == (state, event.id, REPORT)
    assert (delivery.organization_id, delivery.created_at) == ("org_1", NOW)


def test_an_event_is_frozen_with_the_bytes_of_its_body() -> None:
    entry = CATALOGUE[FINISHED]
    model = entry.model.model_validate(entry.example)
    frozen = freeze_event("org_1", model, NOW, is_test=True)
    assert frozen.body == build_body(model)
    assert (frozen.type, frozen.occurred_on, frozen.is_test) == (FINISHED, 1704063600, True)
    assert "patient_code" not in repr(frozen)
