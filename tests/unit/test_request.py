"""The request of an attempt: exactly the headers that the contract and Standard Webhooks name, and the frozen body."""

from __future__ import annotations

import dataclasses
import json
import sys
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook as Oracle

from carehook import Webhook, WebhookVerificationError, __version__
from carehook.directory.authentication import (
    AuthenticationMethod,
    BasicAuthentication,
    BearerAuthentication,
    HeadersAuthentication,
    NoAuthentication,
)
from carehook.directory.secrets import EndpointSecrets, SigningSecretPeriod
from carehook.dispatch.request import build_credentials, build_request
from carehook.events import CATALOGUE
from carehook.exchange import Request
from carehook.ids import DELIVERY, ENDPOINT, EVENT, ORGANIZATION, new_id
from carehook.ledger.records import ClaimedDelivery, Endpoint
from carehook.ledger.states import EndpointStatus
from carehook.signature import derive_public_key, generate_signing_key, generate_signing_secret

NOW = datetime.now(UTC)
AGREED = "agreed with the support team"
# Odd on purpose: whatever was accepted is sent, byte for byte.
BODY = json.dumps(CATALOGUE["patient_report_sent"].example, indent=3, ensure_ascii=True).encode() + b"\n"
URL = "https://hospital.example/hook?token=1"


@pytest.fixture(autouse=True)
def real_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The present, anew for each test: the oracle knows no other, and forgives it five minutes."""
    monkeypatch.setattr(sys.modules[__name__], "NOW", datetime.now(UTC))


def make_delivery(body: bytes = BODY) -> ClaimedDelivery:
    endpoint = Endpoint(
        id=new_id(ENDPOINT),
        organization_id=new_id(ORGANIZATION),
        url=URL,
        description="",
        event_types=(),
        status=EndpointStatus.ACTIVE,
        status_reason=None,
        sealed_secrets=b"",
        created_at=NOW,
        updated_at=NOW,
    )
    return ClaimedDelivery(
        id=new_id(DELIVERY),
        lease_token=1,
        lease_until=NOW + timedelta(seconds=45),
        attempt_count=0,
        failure_count=0,
        event_id=new_id(EVENT),
        event_type="patient_report_sent",
        accepted_at=NOW,
        body=body,
        endpoint=endpoint,
    )


def build(
    delivery: ClaimedDelivery,
    *secrets: str | tuple[str, datetime],
    now: datetime | None = None,
    authentication: AuthenticationMethod | None = None,
) -> Request:
    """The request, signed with secrets of which some have an end, as it leaves after its authentication."""
    periods = [
        SigningSecretPeriod(secret=SecretStr(each))
        if isinstance(each, str)
        else SigningSecretPeriod(secret=SecretStr(each[0]), expires_at=each[1])
        for each in secrets
    ]
    opened = EndpointSecrets(signature_value=SecretStr(AGREED), signing_secrets=tuple(periods))
    credentials = build_credentials(opened)
    request = build_request(delivery, credentials, now or NOW)
    (step,) = (authentication or NoAuthentication(type="none")).authenticate(request)
    assert isinstance(step, Request)
    return step


def test_the_headers_are_those_of_the_wire_contract_and_no_others() -> None:
    delivery = make_delivery()
    request = build(delivery, generate_signing_secret())
    signature = request.headers["webhook-signature"]
    assert request.method == "POST"
    assert request.url == URL
    assert request.headers == {
        "content-type": "application/json",
        "user-agent": f"Carehook/{__version__}",
        "x-webhook-signature": AGREED,
        "webhook-id": delivery.event_id,
        "webhook-timestamp": str(int(NOW.timestamp())),
        "webhook-signature": signature,
    }
    assert signature.startswith("v1,")
    assert " " not in signature


def test_the_body_is_the_one_that_was_frozen() -> None:
    body = b'{"type": "patient_report_sent",\t"occurred_on" : 1.0e3 , "payload":{"a":"\xc3\xa9","a":"\\u00e9"}}'
    assert build(make_delivery(body), generate_signing_secret()).body is body


def test_a_request_verifies_with_the_receiver_and_with_the_standards_own_library() -> None:
    secret = generate_signing_secret()
    request = build(make_delivery(), secret)
    event = Webhook(signature_value=AGREED, signing_secret=secret).verify(request.body, request.headers)
    assert event.type == "patient_report_sent"
    assert Oracle(secret).verify(request.body, dict(request.headers)) == json.loads(BODY)


def test_an_attempt_at_another_time_has_its_own_timestamp_and_signature_and_the_same_id() -> None:
    delivery, secret = make_delivery(), generate_signing_secret()
    first = build(delivery, secret)
    retried = dataclasses.replace(delivery, lease_token=2, attempt_count=1, failure_count=1)
    second = build(retried, secret, now=NOW + timedelta(seconds=60))
    assert second.headers["webhook-id"] == first.headers["webhook-id"]
    assert int(second.headers["webhook-timestamp"]) == int(first.headers["webhook-timestamp"]) + 60
    assert second.headers["webhook-signature"] != first.headers["webhook-signature"]
    assert second.body == first.body


def test_while_a_secret_is_rotated_holders_of_either_can_verify() -> None:
    new, old = generate_signing_secret(), generate_signing_secret()
    request = build(make_delivery(), new, (old, NOW + timedelta(seconds=1)))
    assert len(request.headers["webhook-signature"].split(" ")) == 2
    for secret in (new, old):
        Webhook(signing_secret=secret).verify(request.body, request.headers)
        assert Oracle(secret).verify(request.body, dict(request.headers))


@pytest.mark.parametrize("ended", [timedelta(0), timedelta(seconds=1), timedelta(days=2)], ids=str)
def test_a_secret_that_has_ended_signs_no_more(ended: timedelta) -> None:
    new, old = generate_signing_secret(), generate_signing_secret()
    request = build(make_delivery(), new, (old, NOW - ended))
    assert " " not in request.headers["webhook-signature"]
    Webhook(signing_secret=new).verify(request.body, request.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(signing_secret=old).verify(request.body, request.headers)


def test_an_endpoint_may_be_signed_to_with_ed25519() -> None:
    key = generate_signing_key()
    request = build(make_delivery(), key)
    assert request.headers["webhook-signature"].startswith("v1a,")
    Webhook(signing_secret=derive_public_key(key)).verify(request.body, request.headers)


@pytest.mark.parametrize(
    ("authentication", "added"),
    [
        (NoAuthentication(type="none"), {}),
        (
            BasicAuthentication(type="basic", username="carehook", password=SecretStr("s:cret")),
            {"authorization": "Basic Y2FyZWhvb2s6czpjcmV0"},
        ),
        (BearerAuthentication(type="bearer", token=SecretStr("t0ken")), {"authorization": "Bearer t0ken"}),
        (
            HeadersAuthentication(type="headers", headers={"X-Api-Key": SecretStr("k3y"), "x-tenant": SecretStr("7")}),
            {"x-api-key": "k3y", "x-tenant": "7"},
        ),
    ],
    ids=["none", "basic", "bearer", "headers"],
)
def test_authentication_adds_its_headers_and_changes_nothing_else(
    authentication: AuthenticationMethod, added: dict[str, str]
) -> None:
    delivery, secret = make_delivery(), generate_signing_secret()
    plain = build(delivery, secret)
    assert build(delivery, secret, authentication=authentication) == plain.with_headers(added)


def test_neither_secrets_nor_the_body_are_in_what_a_log_line_could_show() -> None:
    secret = generate_signing_secret()
    opened = EndpointSecrets(
        signature_value=SecretStr(AGREED), signing_secrets=(SigningSecretPeriod(secret=SecretStr(secret)),)
    )
    credentials, delivery = build_credentials(opened), make_delivery()
    shown = repr((credentials, delivery, build_request(delivery, credentials, NOW)))
    assert AGREED not in shown
    assert secret.removeprefix("whsec_") not in shown
    assert "subjective" not in shown
