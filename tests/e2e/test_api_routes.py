"""What every call answers when all is well, on a running API."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import requests

from carehook import Webhook
from carehook.events import CATALOGUE
from tests.e2e.conftest import REPORT, Client, RunningApi
from tests.receivers import RecordingReceiver

HISTORY = {
    "allergies": [{"id": "a1", "name": "Pollen", "description": "Spring"}],
    "diseases": [],
    "medications": [{"id": "m1", "name": "Cetirizine", "description": "10 mg", "posology": "One a day"}],
}
CONTENT = {"subjective": "s", "objective": "o", "assessment": "a", "plan": "p"}
SPECIALITY = {"id": 1, "name": "General"}


def begin_consultation(client: Client, organization: str, identifier: str = "c1") -> Any:
    client.take("PUT", f"/v1/organizations/{organization}/patients/p1", HISTORY)
    client.take("PUT", "/v1/professionals/d1", {"name": "Doctor", "avatar": "https://image.example/"})
    new = {"id": identifier, "type": "chat", "patient_code": "p1", "professional_id": "d1", "speciality": SPECIALITY}
    return client.take(
        "POST", f"/v1/organizations/{organization}/consultations", {**new, "start_date": "2024-01-01T00:00:00"}
    )


def get_delivery(client: Client, event_id: str) -> Any:
    (delivery,) = client.take("GET", f"/v1/events/{event_id}")["deliveries"]
    return delivery


def wait_for_attempt(client: Client, event_id: str) -> Any:
    while (delivery := get_delivery(client, event_id))["attempt_count"] == 0 or delivery["in_flight"]:
        time.sleep(0.01)
    return delivery


def make_held(client: Client, organization: str, url: str) -> tuple[str, str]:
    """An event whose delivery is held by a paused endpoint: the endpoint's id and the event's."""
    endpoint = client.take("POST", f"/v1/organizations/{organization}/endpoints", {"url": url})["id"]
    client.take("POST", f"/v1/endpoints/{endpoint}/pause")
    return endpoint, client.publish(organization)["id"]


def test_organizations_are_created_shown_and_listed(operator: Client) -> None:
    response = operator.call("POST", "/v1/organizations", {"name": "Clínica"})
    created = response.json()
    assert (response.status_code, created["name"]) == (201, "Clínica")
    assert operator.take("GET", f"/v1/organizations/{created['id']}") == created
    assert created in operator.take("GET", "/v1/organizations")["data"]


def test_an_endpoint_is_shown_with_its_secrets_once(operator: Client, organization: str) -> None:
    new = {
        "url": "http://127.0.0.1:9/hook",
        "event_types": ["patient_report_sent"],
        "description": "Ward 3",
        "signature_value": "agreed",
        "authentication": {"type": "basic", "username": "carehook", "password": "open sesame"},
    }
    response = operator.call("POST", f"/v1/organizations/{organization}/endpoints", new)
    created = response.json()
    assert response.status_code == 201
    assert created["signature_value"] == "agreed"
    assert created["signing_secret"].startswith("whsec_")
    shown = operator.take("GET", f"/v1/endpoints/{created['id']}")
    assert "signing_secret" not in shown
    assert shown["signature_value"] == "********"
    assert shown["authentication"] == {"type": "basic", "username": "carehook", "password": "********"}
    assert {name: shown[name] for name in ("url", "event_types", "description", "status")} == {
        "url": new["url"],
        "event_types": new["event_types"],
        "description": "Ward 3",
        "status": "active",
    }
    assert operator.take("GET", f"/v1/organizations/{organization}/endpoints") == {"data": [shown], "next_cursor": None}


def test_an_endpoint_is_changed_paused_resumed_and_deleted(operator: Client, endpoint: Any) -> None:
    path = f"/v1/endpoints/{endpoint['id']}"
    changed = operator.take("PATCH", path, {"description": "New", "url": None})
    assert (changed["description"], changed["url"]) == ("New", endpoint["url"])
    assert operator.take("POST", f"{path}/pause")["status"] == "paused"
    assert operator.take("POST", f"{path}/resume")["status"] == "active"
    response = operator.call("DELETE", path)
    assert (response.status_code, response.content) == (204, b"")
    assert operator.call("GET", path).status_code == 404


LIMITS = {"max_in_flight": 3, "rate_limit": 0.5, "ordering": "patient"}


def read_limits(endpoint: Any) -> Any:
    return {name: endpoint[name] for name in LIMITS}


def test_an_endpoint_has_the_limits_and_the_order_it_was_given(operator: Client, organization: str) -> None:
    path = f"/v1/organizations/{organization}/endpoints"
    free = operator.take("POST", path, {"url": "http://127.0.0.1:9/hook"})
    assert read_limits(free) == {"max_in_flight": None, "rate_limit": None, "ordering": "none"}
    limited = operator.take("POST", path, {"url": "http://127.0.0.1:9/hook", **LIMITS})
    assert read_limits(limited) == LIMITS
    assert read_limits(operator.take("GET", f"/v1/endpoints/{limited['id']}")) == LIMITS


def test_null_takes_a_limit_away_and_what_is_left_out_stays(operator: Client, endpoint: Any) -> None:
    path = f"/v1/endpoints/{endpoint['id']}"
    assert read_limits(operator.take("PATCH", path, LIMITS)) == LIMITS
    assert read_limits(operator.take("PATCH", path, {"description": "New", "ordering": None})) == LIMITS
    assert read_limits(operator.take("PATCH", path, {"rate_limit": None})) == {**LIMITS, "rate_limit": None}
    changed = operator.take("PATCH", path, {"max_in_flight": None, "rate_limit": 100, "ordering": "none"})
    assert read_limits(changed) == {"max_in_flight": None, "rate_limit": 100, "ordering": "none"}
    assert read_limits(operator.take("GET", path)) == read_limits(changed)


def test_how_it_goes_at_an_endpoint_is_shown(operator: Client, endpoint: Any) -> None:
    assert endpoint["circuit"] == {
        "state": "closed",
        "failures": 0,
        "failing_since": None,
        "last_failure": None,
        "opened_at": None,
        "next_probe_at": None,
    }


def test_a_delivery_that_waits_says_for_what(publisher: Client, operator: Client, organization: str) -> None:
    _, event_id = make_held(operator, organization, "http://127.0.0.1:9/hook")
    delivery = get_delivery(publisher, event_id)
    assert delivery["waits_for"] == {
        "kind": "endpoint",
        "detail": "The endpoint is paused. Resume it to go on.",
        "since": None,
        "until": None,
        "delivery_id": None,
    }
    assert publisher.take("GET", f"/v1/deliveries/{delivery['id']}")["waits_for"] == delivery["waits_for"]


@pytest.mark.parametrize("body", [None, {"overlap_seconds": 0}])
def test_rotation_shows_the_new_secret_alone(operator: Client, endpoint: Any, body: Any) -> None:
    rotated = operator.take("POST", f"/v1/endpoints/{endpoint['id']}/rotate-secret", body)
    assert rotated["signing_secret"].startswith("whsec_")
    assert rotated["signing_secret"] != endpoint["signing_secret"]
    assert rotated["signature_value"] == "********"


async def test_an_example_arrives_and_verifies(operator: Client, endpoint: Any, receiver: RecordingReceiver) -> None:
    before = len(receiver.requests)
    path = f"/v1/endpoints/{endpoint['id']}/test"
    response = await asyncio.to_thread(operator.call, "POST", path, {"event_type": "patient_consultation_finished"})
    sent = response.json()
    assert (response.status_code, sorted(sent)) == (202, ["delivery_id", "event_id"])
    request = (await receiver.wait_for_requests(before + 1))[before]
    webhook = Webhook(signature_value=endpoint["signature_value"], signing_secret=endpoint["signing_secret"])
    assert webhook.verify(request.body, request.headers).type == "patient_consultation_finished"
    assert request.headers["webhook-id"] == sent["event_id"]
    assert operator.take("GET", f"/v1/events/{sent['event_id']}")["is_test"] is True


def test_a_published_event_is_listed_with_its_delivery(publisher: Client, organization: str, endpoint: Any) -> None:
    response = publisher.call("POST", f"/v1/organizations/{organization}/events", REPORT)
    accepted = response.json()
    assert response.status_code == 202
    assert sorted(accepted) == ["deliveries", "id"]
    assert accepted["deliveries"] == 1
    event = publisher.take("GET", f"/v1/events/{accepted['id']}")
    (delivery,) = event.pop("deliveries")
    assert (event["type"], event["occurred_on"]) == ("patient_report_sent", 1704063600)
    assert publisher.take("GET", f"/v1/organizations/{organization}/events")["data"] == [event]
    detail = publisher.take("GET", f"/v1/deliveries/{delivery['id']}")
    assert detail["endpoint_id"] == endpoint["id"]


def test_a_batch_is_answered_in_its_order(publisher: Client, organization: str) -> None:
    events = [dict(entry.example) for entry in CATALOGUE.values()]
    response = publisher.call("POST", f"/v1/organizations/{organization}/events/batch", {"events": events})
    assert response.status_code == 202
    types = [publisher.take("GET", f"/v1/events/{each}")["type"] for each in response.json()["ids"]]
    assert types == list(CATALOGUE)


def test_deliveries_are_filtered(
    operator: Client, organization: str, endpoint: Any, receiver: RecordingReceiver
) -> None:
    held_endpoint, event_id = make_held(operator, organization, receiver.url)
    path = f"/v1/organizations/{organization}/deliveries"

    def find(query: str) -> set[str]:
        return {each["endpoint_id"] for each in operator.take("GET", f"{path}?{query}")["data"]}

    assert find("") == {endpoint["id"], held_endpoint}
    assert find("state=held") == {held_endpoint}
    assert find(f"endpoint_id={endpoint['id']}") == {endpoint["id"]}
    assert find(f"event_id={event_id}&event_type=patient_report_sent") == {endpoint["id"], held_endpoint}
    assert find("event_type=patient_consultation_finished") == set()


def test_a_delivery_is_cancelled_and_retried(operator: Client, organization: str, receiver: RecordingReceiver) -> None:
    endpoint, event_id = make_held(operator, organization, receiver.url)
    path = f"/v1/deliveries/{get_delivery(operator, event_id)['id']}"
    response = operator.call("POST", f"{path}/cancel")
    assert (response.status_code, response.json()["state"]) == (200, "cancelled")
    assert operator.call("POST", f"{path}/cancel").status_code == 409
    operator.take("POST", f"/v1/endpoints/{endpoint}/resume")
    response = operator.call("POST", f"{path}/retry")
    assert response.status_code == 202
    assert response.json()["state"] in ("pending", "succeeded")


def test_an_event_is_resent(operator: Client, organization: str, receiver: RecordingReceiver) -> None:
    event_id = operator.publish(organization)["id"]
    new = operator.take("POST", f"/v1/organizations/{organization}/endpoints", {"url": receiver.url})["id"]
    path = f"/v1/events/{event_id}/resend"
    response = operator.call("POST", path)
    assert (response.status_code, response.json()) == (202, {"deliveries": 0})
    assert operator.take("POST", path, {"endpoint_id": new}) == {"deliveries": 1}
    assert get_delivery(operator, event_id)["endpoint_id"] == new


async def test_what_failed_is_recovered(operator: Client, organization: str) -> None:
    with RecordingReceiver(500) as failing:
        path = f"/v1/organizations/{organization}/endpoints"
        endpoint = operator.take("POST", path, {"url": failing.url})["id"]
        event_id = operator.publish(organization)["id"]
        delivery = await asyncio.to_thread(wait_for_attempt, operator, event_id)
        attempt = operator.take("GET", f"/v1/deliveries/{delivery['id']}")["attempts"][0]
        assert (attempt["number"], attempt["status_code"], attempt["outcome"]) == (1, 500, "responded")
        response = operator.call("POST", f"/v1/endpoints/{endpoint}/recover", {"since": "2024-01-01T01:00:00+01:00"})
        assert (response.status_code, response.json()) == (202, {"deliveries": 1})
        await failing.wait_for_requests(2)


def test_a_consultation_is_told_from_its_begin_to_its_end(publisher: Client, organization: str) -> None:
    begun = begin_consultation(publisher, organization)
    assert begun["start_date"] == "2024-01-01T00:00:00"
    assert (begun["end_date"], begun["finished_event_id"]) == (None, None)
    path = f"/v1/organizations/{organization}/consultations/c1"
    report = publisher.call("POST", f"{path}/reports", {"type": "soap", "content": CONTENT})
    assert report.status_code == 201
    assert report.json()["content"] == CONTENT
    assert publisher.take("GET", f"/v1/events/{report.json()['event_id']}")["type"] == "patient_report_sent"
    prescription = publisher.call("POST", f"{path}/prescriptions", {"id": "r1", "active_substances": ["Cetirizine"]})
    assert (prescription.status_code, prescription.json()) == (201, {"id": "r1", "active_substances": ["Cetirizine"]})
    finished = publisher.call("POST", f"{path}/finish", {"end_date": "2024-01-01T01:00:00"})
    assert (finished.status_code, finished.json()["id"]) == (200, "c1")
    event_id = finished.json()["event_id"]
    assert publisher.take("GET", f"/v1/events/{event_id}")["type"] == "patient_consultation_finished"
    again = publisher.call("POST", f"{path}/finish")
    assert again.status_code == 409
    assert event_id in again.json()["detail"]


def test_care_that_is_put_is_echoed(publisher: Client, organization: str) -> None:
    path = f"/v1/organizations/{organization}/patients/p%20%C3%B1"
    assert publisher.take("PUT", path, HISTORY) == {"code": "p ñ", **HISTORY}
    profile = {"name": "Doctor", "avatar": ""}
    assert publisher.take("PUT", "/v1/professionals/d9", profile) == {"id": "d9", **profile}


def test_a_publishers_professional_is_its_organizations_alone(
    publisher: Client, operator: Client, organization: str
) -> None:
    publisher.take("PUT", "/v1/professionals/own", {"name": "Own", "avatar": ""})
    other = operator.take("POST", "/v1/organizations", {"name": "Other"})["id"]
    operator.take("PUT", f"/v1/organizations/{other}/patients/p1", HISTORY)
    new = {"type": "chat", "patient_code": "p1", "professional_id": "own", "speciality": SPECIALITY}
    refused = operator.call("POST", f"/v1/organizations/{other}/consultations", new)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "professional_id")
    operator.take("PUT", "/v1/professionals/own", {"name": "Platform", "avatar": ""})
    assert operator.call("POST", f"/v1/organizations/{other}/consultations", new).status_code == 201


def test_a_repeated_consultation_is_answered_as_the_first_time(publisher: Client, organization: str) -> None:
    assert begin_consultation(publisher, organization) == begin_consultation(publisher, organization)


def test_event_types_come_from_the_catalogue(publisher: Client) -> None:
    listed = publisher.take("GET", "/v1/event-types")
    assert listed["next_cursor"] is None
    assert {each["name"]: each for each in listed["data"]} == {
        entry.name: {
            "name": entry.name,
            "description": entry.description,
            "json_schema": entry.json_schema,
            "example": entry.example,
            "medical_fields": sorted(entry.medical_fields),
        }
        for entry in CATALOGUE.values()
    }


def test_it_lives_and_is_ready(anonymous: Client) -> None:
    assert anonymous.take("GET", "/healthz") == {"status": "alive"}
    assert anonymous.take("GET", "/readyz") == {"status": "ready"}


@pytest.mark.parametrize(
    ("path", "is_draining", "status"), [("/healthz", True, 200), ("/readyz", False, 200), ("/readyz", True, 503)]
)
def test_a_probe_answers_head_as_get_without_the_body(
    api: RunningApi, anonymous: Client, path: str, is_draining: bool, status: int
) -> None:
    api.draining = is_draining
    try:
        head, get = anonymous.call("HEAD", path), anonymous.call("GET", path)
    finally:
        api.draining = False
    assert (head.status_code, get.status_code, head.content) == (status, status, b"")
    assert {**head.headers, "date": ""} == {**get.headers, "date": ""}
    assert int(head.headers["content-length"]) == len(get.content)


def test_a_process_that_drains_lives_but_is_not_ready(api: RunningApi, anonymous: Client) -> None:
    api.draining = True
    try:
        response = anonymous.call("GET", "/readyz")
        assert anonymous.call("GET", "/healthz").status_code == 200
    finally:
        api.draining = False
    assert response.status_code == 503
    assert response.headers["retry-after"]
    assert response.json()["errors"] == [{"field": "process", "rule": "is shutting down"}]


def test_metrics_count_what_was_accepted(operator: Client, anonymous: Client, organization: str) -> None:
    def count(response: requests.Response) -> float:
        name = 'carehook_events_accepted_total{event_type="patient_report_sent"} '
        lines = [line for line in response.text.splitlines() if line.startswith(name)]
        return float(lines[0].removeprefix(name)) if lines else 0.0

    before = anonymous.call("GET", "/metrics")
    operator.publish(organization)
    after = anonymous.call("GET", "/metrics")
    assert count(after) == count(before) + 1
    assert after.headers["content-type"].startswith("text/plain; version=")
    assert "carehook_backlog_deliveries" in after.text


@pytest.mark.parametrize("path", ["/healthz", "/v1/organizations", "/nowhere", "/openapi.json"])
def test_every_answer_says_how_to_treat_it(operator: Client, path: str) -> None:
    headers = operator.call("GET", path).headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers
