"""Bad input: a problem document that names the field or the rule, nothing stored, nothing sent."""

from __future__ import annotations

import copy
import json
import socket
from typing import Any

import pytest
import requests

from carehook.events import CATALOGUE
from carehook.ids import ENDPOINT, ORGANIZATION, new_id
from tests.e2e.conftest import REPORT, Client, RunningApi
from tests.e2e.test_api_routes import CONTENT, HISTORY, SPECIALITY, begin_consultation
from tests.receivers import RecordingReceiver

FINISHED = dict(CATALOGUE["patient_consultation_finished"].example)
MEBIBYTE = 1024 * 1024


def change(event: dict[str, Any], path: str, value: Any) -> Any:
    """The event with something else at a dotted path."""
    changed = copy.deepcopy(event)
    *parents, last = path.split(".")
    inner: Any = changed
    for name in parents:
        inner = inner[int(name) if isinstance(inner, list) else name]
    inner[last] = value
    return changed


def assert_problem(response: requests.Response, status: int, field: str | None = None, rule: str = "") -> Any:
    problem = response.json()
    assert response.status_code == status, problem
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    assert problem["type"].startswith("/problems/")
    assert problem["title"]
    assert problem["detail"]
    if field is not None:
        rules = {error["field"]: error["rule"] for error in problem["errors"]}
        assert rule in rules.get(field, f"no error of {field} among {rules}")
    return problem


@pytest.fixture
def nothing(operator: Client, organization: str, endpoint: Any, receiver: RecordingReceiver) -> Any:
    """Check that the organization, whose endpoint would receive it, has no event, no delivery and got no request."""
    before = len(receiver.requests)

    def check() -> None:
        for kind in ("events", "deliveries"):
            assert operator.take("GET", f"/v1/organizations/{organization}/{kind}")["data"] == []
        assert len(receiver.requests) == before

    return check


BAD_BODIES = [
    pytest.param(b"{", 400, "body", "is not JSON", id="not JSON"),
    pytest.param(b"", 400, "body", "is not JSON", id="empty"),
    pytest.param(b"\xff\xfe", 400, "body", "is not JSON", id="not UTF-8"),
    pytest.param(rb'{"type": "\ud800"}', 400, "body", "is not JSON", id="lone surrogate"),
    pytest.param(b"[" * 100_000, 400, "body", "is not JSON", id="too deep"),
    pytest.param(b"[]", 422, "body", "must be an object", id="not an object"),
    pytest.param(b"{}", 422, "type", "is required", id="no type"),
]

BAD_EVENTS = [
    ({**REPORT, "type": "patient_born"}, "type", "must be one of"),
    ({**REPORT, "occurred_on": "1704063600"}, "occurred_on", "must be a Unix time"),
    ({**REPORT, "extra": 1}, "extra", "is not a field of the contract"),
    (change(REPORT, "payload.patient.code", ""), "payload.patient.code", "must not be empty"),
    (
        change(FINISHED, "payload.consultation.start_date", "2024-13-01T00:00:00"),
        "payload.consultation.start_date",
        "ISO",
    ),
    (change(FINISHED, "payload.reports.1.content.plan", None), "payload.reports.1.content.plan", "must be a string"),
]


@pytest.mark.parametrize(("body", "status", "field", "rule"), BAD_BODIES)
@pytest.mark.parametrize("path", ["events", "events/batch"])
def test_a_body_that_is_no_event_is_refused(
    publisher: Client, organization: str, nothing: Any, path: str, body: bytes, status: int, field: str, rule: str
) -> None:
    where = "events" if path == "events/batch" and field == "type" else field
    response = publisher.call("POST", f"/v1/organizations/{organization}/{path}", data=body)
    assert_problem(response, status, where, rule)
    nothing()


@pytest.mark.parametrize(("event", "field", "rule"), BAD_EVENTS)
def test_an_event_that_breaks_the_contract_is_refused(
    publisher: Client, organization: str, nothing: Any, event: Any, field: str, rule: str
) -> None:
    assert_problem(publisher.call("POST", f"/v1/organizations/{organization}/events", event), 422, field, rule)
    nothing()


@pytest.mark.parametrize(("event", "field", "rule"), BAD_EVENTS)
def test_a_batch_with_one_bad_event_is_refused_whole(
    publisher: Client, organization: str, nothing: Any, event: Any, field: str, rule: str
) -> None:
    body = {"events": [REPORT, event, REPORT]}
    response = publisher.call("POST", f"/v1/organizations/{organization}/events/batch", body)
    assert_problem(response, 422, f"events.1.{field}", rule)
    nothing()


@pytest.mark.parametrize("count", [0, 1001])
def test_a_batch_has_1_to_1000_events(publisher: Client, organization: str, nothing: Any, count: int) -> None:
    response = publisher.call("POST", f"/v1/organizations/{organization}/events/batch", {"events": [REPORT] * count})
    assert_problem(response, 422, "events", "1 to 1000")
    nothing()


def build_large(size: int) -> bytes:
    return json.dumps(change(REPORT, "payload.content.plan", "x" * size)).encode()


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize(("path", "limit"), [("events", 1), ("events/batch", 16)])
def test_a_body_that_is_too_large_is_refused(
    publisher: Client, organization: str, nothing: Any, path: str, limit: int, is_chunked: bool
) -> None:
    body = build_large((limit + 1) * MEBIBYTE)
    chunks = (body[start : start + 65536] for start in range(0, len(body), 65536))
    url = f"/v1/organizations/{organization}/{path}"
    response = publisher.call("POST", url, data=chunks if is_chunked else body)
    assert_problem(response, 413, "body", f"at most {limit * MEBIBYTE} bytes")
    nothing()


def test_a_body_just_within_the_limit_is_read(publisher: Client, organization: str) -> None:
    size = MEBIBYTE - len(build_large(0))
    url = f"/v1/organizations/{organization}/events"
    assert publisher.call("POST", url, data=build_large(size)).status_code == 202
    assert publisher.call("POST", url, data=build_large(size + 1)).status_code == 413


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/organizations"), ("PUT", "/v1/professionals/d1"), ("PATCH", "/v1/endpoints/{}")]
)
def test_other_bodies_have_at_most_a_mebibyte(operator: Client, method: str, path: str) -> None:
    body = json.dumps({"name": "x" * MEBIBYTE}).encode()
    response = operator.call(method, path.format(new_id(ENDPOINT)), data=body)
    assert_problem(response, 413, "body", f"at most {MEBIBYTE} bytes")


def send_raw(api: RunningApi, request: bytes, *, then_leave: bool) -> bytes:
    """The first that is answered to a request whose body is shorter than it says; nothing, perhaps, if we leave."""
    with socket.create_connection(("127.0.0.1", api.port), timeout=30) as connection:
        connection.sendall(request)
        if then_leave:
            connection.shutdown(socket.SHUT_WR)
        return connection.recv(65536)


def build_head(client: Client, organization: str, length: str) -> bytes:
    lines = [
        f"POST /v1/organizations/{organization}/events HTTP/1.1",
        "host: carehook",
        f"authorization: Bearer {client.token}",
        f"content-length: {length}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def test_a_length_beyond_the_limit_is_refused_before_anything_is_read(
    api: RunningApi, publisher: Client, organization: str, nothing: Any
) -> None:
    head = build_head(publisher, organization, str(2 * MEBIBYTE))
    assert send_raw(api, head, then_leave=False).startswith(b"HTTP/1.1 413 ")
    nothing()


def test_a_body_that_breaks_off_stores_nothing(
    api: RunningApi, publisher: Client, organization: str, nothing: Any
) -> None:
    body = json.dumps(REPORT).encode()
    head = build_head(publisher, organization, str(len(body) + 1))
    assert b" 202 " not in send_raw(api, head + body, then_leave=True)
    nothing()


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/xml", "x"])
@pytest.mark.parametrize("path", ["events", "events/batch", "consultations", "endpoints"])
def test_another_content_type_is_refused(
    operator: Client, organization: str, nothing: Any, path: str, content_type: str
) -> None:
    url = f"/v1/organizations/{organization}/{path}"
    response = operator.call("POST", url, data=json.dumps(REPORT), headers={"content-type": content_type})
    assert_problem(response, 415, "Content-Type", "application/json")
    nothing()


@pytest.mark.parametrize("content_type", [None, "application/json; charset=utf-8", "application/cloudevents+json"])
def test_json_by_another_name_is_taken(publisher: Client, organization: str, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    url = f"/v1/organizations/{organization}/events"
    assert publisher.call("POST", url, data=json.dumps(REPORT).encode(), headers=headers).status_code == 202
    url = f"/v1/organizations/{organization}/patients/p1"
    assert publisher.call("PUT", url, data=json.dumps(HISTORY).encode(), headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["events", "events/batch", "consultations", "endpoints"])
def test_an_unknown_organization_is_not_found(operator: Client, path: str) -> None:
    bodies = {
        "events": REPORT,
        "events/batch": {"events": [REPORT]},
        "consultations": {"type": "chat", "patient_code": "p", "professional_id": "d", "speciality": SPECIALITY},
        "endpoints": {"url": "http://127.0.0.1:9/"},
    }
    for unknown in (new_id(ORGANIZATION), "org_1", "%00", "x" * 5000, "%ED%A0%80", "..%2f"):
        assert_problem(operator.call("POST", f"/v1/organizations/{unknown}/{path}", bodies[path]), 404)


def test_a_token_of_another_organization_stores_nothing(stranger: Client, organization: str, nothing: Any) -> None:
    for path, body in (("events", REPORT), ("events/batch", {"events": [REPORT]})):
        problem = assert_problem(stranger.call("POST", f"/v1/organizations/{organization}/{path}", body), 403)
        assert "another organization" in problem["detail"]
    nothing()


BAD_URLS = [
    "http://10.0.0.1/",
    "http://169.254.169.254/latest/meta-data",
    "http://[::1]:8080/",
    "http://[::ffff:10.0.0.1]/",
    "http://167772161/",
    "http://0xa.0.0.1/",
    "http://0300.0250.1/",
    "http://0/",
    "http://224.0.0.1/",
    "ftp://127.0.0.1/",
    "http://user:password@127.0.0.1/",
    "http://127.0.0.1:0/",
    "http://127.0.0.1/\x00",
    "nonsense",
    "",
    "http://" + "x" * 3000,
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_url_that_is_not_allowed_is_refused(operator: Client, organization: str, endpoint: Any, url: str) -> None:
    path = f"/v1/organizations/{organization}/endpoints"
    before = operator.take("GET", path)
    assert_problem(operator.call("POST", path, {"url": url}), 422, "url")
    assert_problem(operator.call("PATCH", f"/v1/endpoints/{endpoint['id']}", {"url": url}), 422, "url")
    oauth = {"type": "oauth2_client_credentials", "token_url": url, "client_id": "c", "client_secret": "s"}
    response = operator.call("POST", path, {"url": endpoint["url"], "authentication": oauth})
    assert_problem(response, 422, "authentication.token_url")
    assert operator.take("GET", path) == before


BAD_REQUESTS = [
    ("POST", "/v1/organizations", {"name": ""}, "name"),
    ("POST", "/v1/organizations", {"name": "a\x00b"}, "name"),
    ("POST", "/v1/organizations", {"name": "x" * 201}, "name"),
    ("POST", "/v1/organizations", {}, "name"),
    ("POST", "/v1/organizations", [], "body"),
    ("POST", "/v1/organizations", {"name": "x", "nmae": "y"}, "nmae"),
    ("POST", "{organization}/endpoints", {"url": "http://127.0.0.1/", "event_types": ["x"]}, "event_types.0"),
    ("POST", "{organization}/endpoints", {"url": "http://127.0.0.1/", "authentication": {}}, "authentication.type"),
    (
        "POST",
        "{organization}/endpoints",
        {"url": "http://127.0.0.1/", "authentication": {"type": "basic", "username": "u"}},
        "authentication.password",
    ),
    ("POST", "{organization}/endpoints", {"url": "http://127.0.0.1/", "max_in_flight": 0}, "max_in_flight"),
    ("POST", "{organization}/endpoints", {"url": "http://127.0.0.1/", "rate_limit": 0}, "rate_limit"),
    ("POST", "{organization}/endpoints", {"url": "http://127.0.0.1/", "ordering": None}, "ordering"),
    ("PATCH", "{endpoint}", {"max_in_flight": 1001}, "max_in_flight"),
    ("PATCH", "{endpoint}", {"rate_limit": "5"}, "rate_limit"),
    ("PATCH", "{endpoint}", {"ordering": "event"}, "ordering"),
    ("PATCH", "{endpoint}", {"signature_value": "a\r\nb"}, "signature_value"),
    ("PATCH", "{endpoint}", {"signature_value": "********"}, "signature_value"),
    ("POST", "{endpoint}/rotate-secret", {"overlap_seconds": 604_801}, "overlap_seconds"),
    ("POST", "{endpoint}/rotate-secret", {"overlap_seconds": "5"}, "overlap_seconds"),
    ("POST", "{endpoint}/test", {"event_type": "patient_born"}, "event_type"),
    ("POST", "{endpoint}/recover", {"since": "2024-01-01"}, "since"),
    ("POST", "{endpoint}/recover", {"since": "0001-01-01T00:00:00+14:00"}, "since"),
    ("POST", "{endpoint}/recover", {"since": 1704063600}, "since"),
    ("POST", "{endpoint}/recover", None, "body"),
    ("PUT", "{organization}/patients/p1", {"allergies": [], "diseases": []}, "medications"),
    ("PUT", "{organization}/patients/p%00", HISTORY, "patient_code"),
    ("PUT", f"{{organization}}/patients/{'x' * 201}", HISTORY, "patient_code"),
    ("PUT", "/v1/professionals/d%00", {"name": "x", "avatar": ""}, "professional_id"),
    ("PUT", "/v1/professionals/d1", {"name": "\x00", "avatar": ""}, "name"),
    ("POST", "{organization}/consultations", {"type": "visit"}, "type"),
    ("POST", "{organization}/consultations/c%00/reports", {"type": "soap", "content": CONTENT}, "consultation_id"),
    ("GET", "{organization}/deliveries?state=lost", None, "state"),
    ("GET", "{organization}/deliveries?endpoint_id=%00", None, "endpoint_id"),
    ("GET", "{organization}/deliveries?event_type=patient_born", None, "event_type"),
    ("GET", "{organization}/deliveries?sate=held", None, "sate"),
    ("GET", "{organization}/events?limit=0", None, "limit"),
    ("GET", "{organization}/events?limit=201", None, "limit"),
    ("GET", "{organization}/events?cursor=nonsense", None, "cursor"),
    ("GET", "{organization}/events?cursor=%00", None, "cursor"),
    ("GET", "/v1/organizations?cursor=org_0123456789abcdef0123456789abcdef", None, "cursor"),
]


@pytest.mark.parametrize(("method", "path", "body", "field"), BAD_REQUESTS)
def test_the_field_that_breaks_a_rule_is_named(
    operator: Client, organization: str, endpoint: Any, method: str, path: str, body: Any, field: str
) -> None:
    where = path.format(organization=f"/v1/organizations/{organization}", endpoint=f"/v1/endpoints/{endpoint['id']}")
    assert_problem(operator.call(method, where, body), 422, field)


@pytest.mark.parametrize("body", [b"{", b'{"name": NaN}', rb'{"name": "\udc00"}', b"[" * 100_000, b"\xff"])
def test_a_body_that_is_not_json_is_malformed(operator: Client, body: bytes) -> None:
    assert_problem(operator.call("POST", "/v1/organizations", data=body), 400, "body", "is not JSON")


@pytest.mark.parametrize("text", ["\x00", "\U0001f600", "\u202e", "x" * 100_000])
def test_any_text_in_a_history_can_be_stored(publisher: Client, organization: str, text: str) -> None:
    history = {**HISTORY, "allergies": [{"id": "a", "name": text, "description": text}]}
    assert (
        publisher.take("PUT", f"/v1/organizations/{organization}/patients/p1", history)["allergies"][0]["name"] == text
    )


def test_no_problem_shows_what_was_in_a_field(operator: Client, organization: str) -> None:
    secret = "s3cr3t-value"
    path = f"/v1/organizations/{organization}"
    answers = [
        operator.call("POST", f"{path}/events", {**REPORT, "type": secret}),
        operator.call("POST", f"{path}/events", change(REPORT, "payload.type", secret)),
        operator.call("POST", f"{path}/events", data=f'{{"{secret}"'.encode()),
        operator.call("POST", "/v1/organizations", data=f'{{"name": {secret}'.encode()),
        operator.call("POST", "/v1/organizations", {"name": [secret]}),
        operator.call("POST", f"{path}/endpoints", {"url": f"http://{secret}.invalid/"}),
        operator.call("POST", f"{path}/endpoints", {"url": "http://127.0.0.1/", "authentication": {"type": secret}}),
        operator.call("POST", f"{path}/consultations", {"type": secret, "id": f"{secret}/"}),
        operator.call("GET", f"{path}/deliveries?state={secret}&cursor={secret}"),
    ]
    assert {answer.status_code for answer in answers} <= {400, 422}
    assert [answer.text for answer in answers if secret in answer.text] == []


def test_what_care_refuses_stores_no_event(publisher: Client, organization: str, nothing: Any) -> None:
    begin_consultation(publisher, organization)
    path = f"/v1/organizations/{organization}/consultations"
    report = {"type": "soap", "content": {**CONTENT, "plan": 7}}
    assert_problem(publisher.call("POST", f"{path}/c1/reports", report), 422, "content.plan", "must be a string")
    assert_problem(publisher.call("POST", f"{path}/c1/finish", {"end_date": "soon"}), 422, "end_date", "ISO 8601")
    early = {"end_date": "2023-01-01T00:00:00"}
    assert_problem(publisher.call("POST", f"{path}/c1/finish", early), 422, "end_date", "start_date")
    assert_problem(publisher.call("POST", f"{path}/c2/finish"), 404)
    unknown = {"type": "chat", "patient_code": "?", "professional_id": "d1", "speciality": SPECIALITY}
    assert_problem(publisher.call("POST", path, unknown), 422, "patient_code", "names no patient")
    other = {"id": "c1", "type": "chat", "patient_code": "p1", "professional_id": "d1", "speciality": SPECIALITY}
    assert_problem(publisher.call("POST", path, {**other, "type": "appointment"}), 409)
    nothing()


@pytest.mark.parametrize("code", ["%FF", "p%C3", "%ED%A0%80", "\ufffd"])
def test_bytes_that_are_no_text_are_no_id(operator: Client, organization: str, code: str) -> None:
    organization_path = f"/v1/organizations/{organization}"
    patient = operator.call("PUT", f"{organization_path}/patients/{code}", HISTORY)
    assert_problem(patient, 422, "patient_code", "of valid UTF-8")
    professional = operator.call("PUT", f"/v1/professionals/{code}", {"name": "Doctor", "avatar": ""})
    assert_problem(professional, 422, "professional_id", "of valid UTF-8")
    consultation = operator.call("POST", f"{organization_path}/consultations/{code}/finish")
    assert_problem(consultation, 422, "consultation_id", "of valid UTF-8")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/organizations", "GET, POST"),
        ("DELETE", "/v1/organizations/{}/events", "GET, POST"),
        ("POST", "/v1/endpoints/{}", "DELETE, GET, PATCH"),
        ("POST", "/healthz", "GET, HEAD"),
    ],
)
def test_another_method_is_told_which_are_allowed(operator: Client, method: str, path: str, allowed: str) -> None:
    response = operator.call(method, path.format(new_id(ORGANIZATION)))
    assert_problem(response, 405)
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/organizations/", "/docs", "/redoc", "/v1/nothing"])
def test_there_is_nothing_elsewhere(operator: Client, path: str) -> None:
    assert_problem(operator.call("GET", path), 404)
