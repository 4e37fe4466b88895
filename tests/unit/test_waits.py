"""Why a delivery has not arrived yet: of all that keeps it, what lasts longest is told."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from carehook.insights.views import WaitKind, WaitView
from carehook.insights.waits import explain_wait
from carehook.ledger.records import Delivery, Endpoint, Lane, Prospect
from carehook.ledger.states import DeliveryState, EndpointStatus

NOW = datetime(2024, 1, 1, 12, tzinfo=UTC)
SOON = NOW + timedelta(seconds=30)
LATER = NOW + timedelta(minutes=5)
EARLIER = NOW - timedelta(minutes=5)

ENDPOINT = Endpoint(
    id="ep_1",
    organization_id="org_1",
    url="https://hospital.example/hook",
    description="",
    event_types=(),
    status=EndpointStatus.ACTIVE,
    status_reason=None,
    sealed_secrets=b"",
    created_at=EARLIER,
    updated_at=EARLIER,
)
DELIVERY = Delivery(
    id="dlv_2",
    event_id="evt_1",
    endpoint_id="ep_1",
    organization_id="org_1",
    event_type="patient_report_sent",
    state=DeliveryState.PENDING,
    due_at=EARLIER,
    lease_until=None,
    attempt_count=0,
    failure_count=0,
    created_at=EARLIER,
    last_attempt_at=None,
    finished_at=None,
)
CLOSED = Lane()
OPEN = Lane(
    failure_streak=12,
    failing_since=EARLIER,
    last_failure="the endpoint answered 500",
    opened_at=EARLIER,
    probe_at=SOON,
)


def explain(
    lane: Lane = CLOSED, earlier: str | None = None, of: Endpoint = ENDPOINT, **delivery: object
) -> WaitView | None:
    changed = dataclasses.replace(DELIVERY, **delivery)  # type: ignore[arg-type]
    return explain_wait(changed, Prospect(of, lane, earlier), NOW)


def test_what_is_in_flight_waits_for_nothing() -> None:
    assert explain(OPEN, "dlv_1", lease_until=SOON) is None


def test_what_is_finished_waits_for_nothing() -> None:
    assert explain_wait(dataclasses.replace(DELIVERY, state=DeliveryState.SUCCEEDED), None, NOW) is None


def test_a_retry_waits_for_its_time() -> None:
    assert explain(due_at=LATER, last_attempt_at=EARLIER) == WaitView(
        kind=WaitKind.SCHEDULE,
        detail="The next attempt is due at 2024-01-01T12:05:00Z.",
        since=EARLIER,
        until=LATER,
        delivery_id=None,
    )


def test_an_open_circuit_tells_since_when_and_why_and_when_it_is_tried_next() -> None:
    assert explain(OPEN) == WaitView(
        kind=WaitKind.CIRCUIT,
        detail="The endpoint's circuit is open since 2024-01-01T11:55:00Z, after 12 failures in a row, the last: the "
        "endpoint answered 500. The next request is tried at 2024-01-01T12:00:30Z; the rest follows when one succeeds.",
        since=EARLIER,
        until=SOON,
        delivery_id=None,
    )


def test_an_open_circuit_that_is_being_tried_says_so() -> None:
    waits_for = explain(dataclasses.replace(OPEN, probe_at=NOW))
    assert waits_for is not None
    assert waits_for.detail.endswith("A request is tried now; the rest follows when one succeeds.")


@pytest.mark.parametrize(("due_at", "kind"), [(SOON, WaitKind.CIRCUIT), (LATER, WaitKind.SCHEDULE)])
def test_of_schedule_and_circuit_the_later_one_is_told(due_at: datetime, kind: WaitKind) -> None:
    waits_for = explain(OPEN, due_at=due_at)
    assert waits_for is not None
    assert (waits_for.kind, waits_for.until) == (kind, due_at)


def test_an_earlier_delivery_of_the_patient_is_named_whatever_else_there_is() -> None:
    waits_for = explain(OPEN, "dlv_1", due_at=LATER)
    assert waits_for is not None
    assert (waits_for.kind, waits_for.delivery_id) == (WaitKind.ORDER, "dlv_1")
    assert waits_for.detail == "An earlier delivery of the same patient, dlv_1, is not finished."


def test_what_is_sent_again_waits_for_a_later_delivery_of_the_patient_that_is_in_flight() -> None:
    assert explain(due_at=None) == WaitView(
        kind=WaitKind.ORDER,
        detail="A later delivery of the same patient is in flight, and this one follows it.",
        since=None,
        until=None,
        delivery_id=None,
    )


@pytest.mark.parametrize(
    ("status", "reason", "detail"),
    [
        (EndpointStatus.PAUSED, None, "The endpoint is paused. Resume it to go on."),
        (EndpointStatus.DISABLED, "it is gone", "The endpoint is disabled: it is gone. Resume it to go on."),
    ],
)
@pytest.mark.parametrize("state", [DeliveryState.HELD, DeliveryState.PENDING])
def test_what_is_held_or_is_about_to_be_waits_for_its_endpoint(
    status: EndpointStatus, reason: str | None, detail: str, state: DeliveryState
) -> None:
    endpoint = dataclasses.replace(ENDPOINT, status=status, status_reason=reason)
    waits_for = explain(OPEN, "dlv_1", of=endpoint, state=state)
    assert waits_for is not None
    assert (waits_for.kind, waits_for.detail) == (WaitKind.ENDPOINT, detail)


@pytest.mark.parametrize(
    ("status", "state", "detail"),
    [
        (
            EndpointStatus.ACTIVE,
            DeliveryState.HELD,
            "The endpoint was resumed, and what was held for it is being released.",
        ),
        (
            EndpointStatus.DELETED,
            DeliveryState.PENDING,
            "The endpoint was deleted, and what waited for it is being cancelled.",
        ),
    ],
)
def test_what_has_yet_to_follow_its_endpoint_says_what_becomes_of_it(
    status: EndpointStatus, state: DeliveryState, detail: str
) -> None:
    waits_for = explain(of=dataclasses.replace(ENDPOINT, status=status), state=state)
    assert waits_for is not None
    assert (waits_for.kind, waits_for.detail) == (WaitKind.ENDPOINT, detail)


@pytest.mark.parametrize(
    ("limits", "until"),
    [
        ({}, "a worker has room for it"),
        ({"max_in_flight": 2}, "the endpoint's limits allow it (requests: 2 in flight at most)"),
        ({"rate_limit": 0.5}, "the endpoint's limits allow it (requests: 0.5 a second at most)"),
        (
            {"max_in_flight": 2, "rate_limit": 100.0},
            "the endpoint's limits allow it (requests: 2 in flight and 100 a second at most)",
        ),
    ],
)
def test_what_is_due_waits_for_its_turn(limits: dict[str, float], until: str) -> None:
    waits_for = explain(of=dataclasses.replace(ENDPOINT, **limits))  # type: ignore[arg-type]
    assert waits_for is not None
    assert waits_for.detail == f"It is due, and goes as soon as {until}."
    assert (waits_for.kind, waits_for.since, waits_for.until) == (WaitKind.TURN, EARLIER, None)
