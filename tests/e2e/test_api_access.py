"""Who may call what, on a running API: every route has a rule, and every rule holds. Secrets stay secret."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.routing import APIRoute
from structlog.testing import capture_logs

from carehook.api import build_api
from carehook.api.routes import MemberRoute, OperatorRoute, PublicRoute, TokenRoute
from carehook.ids import DELIVERY, ENDPOINT, EVENT, new_id
from carehook.ledger.records import Role
from tests.e2e.conftest import REPORT, Client, RunningApi

PUBLIC, TOKEN, MEMBER, OPERATOR = "public", "any token", "member", "operator"

# Written out, so that loosening a route needs a second change, here.
RULES = {
    "GET /healthz": PUBLIC,
    "HEAD /healthz": PUBLIC,
    "GET /readyz": PUBLIC,
    "HEAD /readyz": PUBLIC,
    "GET /metrics": PUBLIC,
    "GET /openapi.json": PUBLIC,
    "GET /v1/event-types": TOKEN,
    "GET /v1/events/{event_id}": TOKEN,
    "GET /v1/deliveries/{delivery_id}": TOKEN,
    "PUT /v1/professionals/{professional_id}": TOKEN,
    "GET /v1/organizations/{organization_id}": MEMBER,
    "GET /v1/organizations/{organization_id}/events": MEMBER,
    "POST /v1/organizations/{organization_id}/events": MEMBER,
    "POST /v1/organizations/{organization_id}/events/batch": MEMBER,
    "GET /v1/organizations/{organization_id}/deliveries": MEMBER,
    "PUT /v1/organizations/{organization_id}/patients/{patient_code}": MEMBER,
    "POST /v1/organizations/{organization_id}/consultations": MEMBER,
    "POST /v1/organizations/{organization_id}/consultations/{consultation_id}/reports": MEMBER,
    "POST /v1/organizations/{organization_id}/consultations/{consultation_id}/prescriptions": MEMBER,
    "POST /v1/organizations/{organization_id}/consultations/{consultation_id}/finish": MEMBER,
    "GET /v1/organizations": OPERATOR,
    "POST /v1/organizations": OPERATOR,
    "GET /v1/organizations/{organization_id}/endpoints": OPERATOR,
    "POST /v1/organizations/{organization_id}/endpoints": OPERATOR,
    "GET /v1/endpoints/{endpoint_id}": OPERATOR,
    "PATCH /v1/endpoints/{endpoint_id}": OPERATOR,
    "DELETE /v1/endpoints/{endpoint_id}": OPERATOR,
    "POST /v1/endpoints/{endpoint_id}/pause": OPERATOR,
    "POST /v1/endpoints/{endpoint_id}/resume": OPERATOR,
    "POST /v1/endpoints/{endpoint_id}/rotate-secret": OPERATOR,
    "POST /v1/endpoints/{endpoint_id}/test": OPERATOR,
    "POST /v1/endpoints/{endpoint_id}/recover": OPERATOR,
    "POST /v1/events/{event_id}/resend": OPERATOR,
    "POST /v1/deliveries/{delivery_id}/retry": OPERATOR,
    "POST /v1/deliveries/{delivery_id}/cancel": OPERATOR,
}


def read_rule(route: APIRoute) -> str:
    for route_class, rule in ((OperatorRoute, OPERATOR), (MemberRoute, MEMBER), (TokenRoute, TOKEN)):
        if isinstance(route, route_class):
            return rule
    return PUBLIC if isinstance(route, PublicRoute) else "none"


def test_every_route_has_the_rule_that_is_written_here(api: RunningApi) -> None:
    routes = build_api(api.application).routes
    assert [route for route in routes if not isinstance(route, PublicRoute)] == []
    assert {
        f"{method} {route.path}": read_rule(route)
        for route in routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    } == RULES


def fill(call: str, organization: str) -> tuple[str, str]:
    method, path = call.split(" ")
    ids = {"endpoint_id": ENDPOINT, "event_id": EVENT, "delivery_id": DELIVERY}
    named = {name: new_id(prefix) for name, prefix in ids.items()}
    care = dict.fromkeys(("professional_id", "patient_code", "consultation_id"), "x1")
    return method, path.format(organization_id=organization, **named, **care)


@pytest.mark.parametrize("call", [call for call, rule in RULES.items() if rule != PUBLIC])
def test_without_a_valid_token_nothing_is_told(anonymous: Client, organization: str, call: str) -> None:
    method, path = fill(call, organization)
    response = anonymous.call(method, path, data=b"not read")
    assert (response.status_code, response.json()["type"]) == (401, "/problems/unauthenticated")
    assert response.headers["www-authenticate"] == 'Bearer realm="carehook"'
    for wrong in ("Bearer carehook_wrong", "bearer \xff", "Bearer " + "x" * 10_000):
        response = anonymous.call(method, path, headers={"authorization": wrong.encode("latin-1")})
        assert response.status_code == 401
        assert 'error="invalid_token"' in response.headers["www-authenticate"]
    for other in ("Basic dXNlcjpwYXNz", "Bearer", "Bearer ", ""):
        assert anonymous.call(method, path, headers={"authorization": other}).status_code == 401


@pytest.mark.parametrize("call", [call for call, rule in RULES.items() if rule == OPERATOR])
def test_what_is_the_operators_is_forbidden_to_a_publisher(publisher: Client, organization: str, call: str) -> None:
    method, path = fill(call, organization)
    response = publisher.call(method, path, data=b"not read")
    assert response.status_code == 403
    assert "operator" in response.json()["detail"]


@pytest.mark.parametrize("call", [call for call, rule in RULES.items() if rule == MEMBER])
def test_what_is_an_organizations_is_forbidden_to_another_ones_publisher(
    stranger: Client, publisher: Client, organization: str, call: str
) -> None:
    method, path = fill(call, organization)
    response = stranger.call(method, path, data=b"not read")
    assert response.status_code == 403
    assert "another organization" in response.json()["detail"]
    assert publisher.call(method, path, data=b"{}").status_code not in (401, 403)


@pytest.mark.parametrize("call", [call for call, rule in RULES.items() if rule != PUBLIC])
def test_an_operator_may_do_everything(operator: Client, organization: str, call: str) -> None:
    method, path = fill(call, organization)
    assert operator.call(method, path, data=b"{}").status_code not in (401, 403)


def test_what_is_another_organizations_does_not_exist(
    stranger: Client, publisher: Client, operator: Client, organization: str, endpoint: Any
) -> None:
    event = publisher.publish(organization)["id"]
    delivery = publisher.take("GET", f"/v1/events/{event}")["deliveries"][0]["id"]
    for kind, identifier, prefix in (("events", event, EVENT), ("deliveries", delivery, DELIVERY)):
        hidden = stranger.call("GET", f"/v1/{kind}/{identifier}")
        absent_id = new_id(prefix)
        absent = stranger.call("GET", f"/v1/{kind}/{absent_id}")
        assert hidden.status_code == absent.status_code == 404
        assert hidden.text.replace(identifier, "") == absent.text.replace(absent_id, "")
        assert operator.call("GET", f"/v1/{kind}/{identifier}").status_code == 200
    assert endpoint["organization_id"] == organization


def test_a_revoked_token_is_refused(api: RunningApi, operator: Client, organization: str) -> None:
    new = api.ask(lambda carehook: carehook.tokens.create(Role.PUBLISHER, organization))
    client = Client(operator.url, new.secret.get_secret_value(), operator.session)
    assert client.call("GET", "/v1/event-types").status_code == 200
    api.ask(lambda carehook: carehook.tokens.revoke(new.token.id))
    assert client.call("GET", "/v1/event-types").status_code == 401


def test_secrets_are_in_no_answer_and_no_log_after_creation(
    operator: Client, organization: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = f"/v1/organizations/{organization}/endpoints"
    secrets = {name: f"{name}-2f6c1d" for name in ("password", "token", "header", "client-secret", "agreed")}
    methods: list[dict[str, Any]] = [
        {"type": "basic", "username": "u", "password": secrets["password"]},
        {"type": "bearer", "token": secrets["token"]},
        {"type": "headers", "headers": {"x-api-key": secrets["header"]}},
        {
            "type": "oauth2_client_credentials",
            "token_url": "http://127.0.0.1:9/token",
            "client_id": "c",
            "client_secret": secrets["client-secret"],
        },
    ]
    answers = []
    with capture_logs() as logs:
        for method in methods:
            new = {"url": "http://127.0.0.1:9/", "authentication": method, "signature_value": secrets["agreed"]}
            created = operator.take("POST", path, new)
            secrets[created["id"]] = created["signing_secret"]
            one = f"/v1/endpoints/{created['id']}"
            answers += [operator.call("GET", one), operator.call("PATCH", one, {"authentication": method})]
            answers += [operator.call("POST", f"{one}/{verb}") for verb in ("pause", "resume")]
            rotated = operator.call("POST", f"{one}/rotate-secret")
            secrets[f"{created['id']} rotated"] = rotated.json()["signing_secret"]
            assert secrets["agreed"] not in rotated.text
            answers += [operator.call("POST", f"{one}/test"), operator.call("DELETE", f"{one}x")]
        answers += [operator.call("GET", path), operator.call("GET", f"/v1/organizations/{organization}/deliveries")]
    shown = "".join(answer.text for answer in answers) + repr(logs) + "".join(capfd.readouterr())
    secrets["token itself"] = operator.token or ""
    assert [name for name, secret in secrets.items() if secret in shown] == []
    assert {answer.status_code for answer in answers} == {200, 202, 404}


def test_a_refused_authentication_is_logged_without_what_was_sent(anonymous: Client, organization: str) -> None:
    path = f"/v1/organizations/{organization}/patients/secret-patient"
    with capture_logs() as logs:
        anonymous.call("PUT", path, REPORT, headers={"authorization": "Bearer carehook_guess"})
    (line,) = [each for each in logs if each["event"] == "authentication_refused"]
    assert (line["method"], line["route"]) == ("PUT", "/v1/organizations/{organization_id}/patients/{patient_code}")
    assert "guess" not in repr(logs)
    assert "secret-patient" not in repr(logs)
