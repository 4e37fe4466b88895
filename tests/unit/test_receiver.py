"""A receiver's few lines: a typed event, or the one error, whatever comes in."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from email.message import Message
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import carehook
from carehook import PatientConsultationFinished, PatientReportSent, Reason, Webhook, WebhookVerificationError
from carehook.events import CATALOGUE, build_body, parse_event
from carehook.signature import (
    SignatureFailure,
    SigningSecret,
    derive_public_key,
    generate_signing_key,
    generate_signing_secret,
    sign,
)

NOW = 1704063600
VALUE = "agreed-with-support"
SECRET = generate_signing_secret()
BODY = json.dumps(CATALOGUE["patient_consultation_finished"].example).encode()


def build_headers(body: bytes = BODY, secret: str = SECRET, **changes: str) -> dict[str, str]:
    headers = {
        "content-type": "application/json",
        "x-webhook-signature": VALUE,
        "webhook-id": "evt_1",
        "webhook-timestamp": str(NOW),
        "webhook-signature": sign("evt_1", NOW, body, [SigningSecret.parse(secret)]),
    }
    return headers | {name.replace("_", "-"): value for name, value in changes.items()}


def without(headers: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key != name}


def refuse(webhook: Webhook, body: Any = BODY, headers: Any = None, now: float = NOW) -> WebhookVerificationError:
    with pytest.raises(WebhookVerificationError) as refusal:
        webhook.verify(body, build_headers() if headers is None else headers, now=now)
    return refusal.value


@pytest.fixture
def webhook() -> Webhook:
    return Webhook(signature_value=VALUE, signing_secret=SECRET)


# -- what is accepted


def test_a_right_request_becomes_a_typed_event(webhook: Webhook) -> None:
    event = webhook.verify(BODY, build_headers(), now=NOW)
    assert isinstance(event, PatientConsultationFinished)
    assert event.payload.consultation.id == "id_consultation"
    assert event == parse_event(BODY)


@pytest.mark.parametrize(
    "body", [bytearray(BODY), memoryview(BODY), BODY.decode()], ids=lambda body: type(body).__name__
)
def test_a_body_may_be_of_any_of_pythons_kinds(webhook: Webhook, body: bytearray | memoryview | str) -> None:
    assert webhook.verify(body, build_headers(), now=NOW) == parse_event(BODY)


def build_message(headers: dict[str, str]) -> Message:
    message = Message()
    for name, value in headers.items():
        message[name] = value
    return message


FORMS: dict[str, Callable[[dict[str, str]], Any]] = {
    "title case": lambda headers: {name.title(): value for name, value in headers.items()},
    "bytes": lambda headers: {name.encode(): value.encode() for name, value in headers.items()},
    "pairs": lambda headers: list(headers.items()),
    "pairs of bytes": lambda headers: [(name.encode(), value.encode()) for name, value in headers.items()],
    "a generator": lambda headers: ((name, value) for name, value in headers.items()),
    "email.message.Message": build_message,
    "a WSGI environ": lambda headers: {
        "wsgi.version": (1, 0),
        "REQUEST_METHOD": "POST",
        **{"HTTP_" + name.upper().replace("-", "_"): value for name, value in headers.items()},
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_headers_may_come_in_any_form(webhook: Webhook, form: str) -> None:
    assert webhook.verify(BODY, FORMS[form](build_headers()), now=NOW) == parse_event(BODY)


def test_the_clock_of_this_machine_is_the_default() -> None:
    assert refuse_with_own_clock().reason is Reason.TIMESTAMP_TOO_OLD


def refuse_with_own_clock() -> WebhookVerificationError:
    with pytest.raises(WebhookVerificationError) as refusal:
        Webhook(signing_secret=SECRET).verify(BODY, build_headers())
    return refusal.value


def test_either_proof_is_enough_when_only_that_one_is_configured() -> None:
    headers = build_headers()
    only_value = {"x-webhook-signature": VALUE}
    assert Webhook(signature_value=VALUE).verify(BODY, only_value).type == "patient_consultation_finished"
    unsigned = without(headers, "x-webhook-signature")
    assert Webhook(signing_secret=SECRET).verify(BODY, unsigned, now=NOW).type == "patient_consultation_finished"


def test_several_secrets_and_a_public_key_are_accepted() -> None:
    key = generate_signing_key()
    webhook = Webhook(signing_secret=[generate_signing_secret(), SECRET, derive_public_key(key)])
    assert webhook.verify(BODY, build_headers(), now=NOW) == parse_event(BODY)
    assert webhook.verify(BODY, build_headers(secret=key), now=NOW) == parse_event(BODY)


def test_a_newer_senders_unknown_fields_are_passed_over(webhook: Webhook) -> None:
    example = json.loads(build_body(parse_event(BODY)))
    example["payload"]["patient"]["nickname"] = "new"
    body = json.dumps(example).encode()
    assert webhook.verify(body, build_headers(body), now=NOW) == parse_event(BODY)


def test_the_event_types_are_exported_for_matching() -> None:
    body = json.dumps(CATALOGUE["patient_report_sent"].example).encode()
    match Webhook(signature_value=VALUE).verify(body, {"x-webhook-signature": VALUE}):
        case PatientReportSent(payload=payload):
            assert payload.patient.code == "patient_code"
        case other:
            pytest.fail(f"not matched: {other!r}")


# -- what is refused


@pytest.mark.parametrize("name", ["x-webhook-signature", "webhook-id", "webhook-timestamp", "webhook-signature"])
def test_each_security_header_is_needed_exactly_once(webhook: Webhook, name: str) -> None:
    headers = build_headers()
    missing = refuse(webhook, headers=without(headers, name))
    doubled = refuse(webhook, headers=[*headers.items(), (name.upper(), headers[name])])
    assert (missing.reason, doubled.reason) == (Reason.MISSING_HEADER, Reason.DUPLICATE_HEADER)
    assert name in str(missing)
    assert name in str(doubled)


@pytest.mark.parametrize("value", ["", VALUE + "x", VALUE[:-1], VALUE.upper(), f"{VALUE}, {VALUE}", "é", "\ud800"])
def test_another_signature_value_is_refused_although_the_signature_holds(webhook: Webhook, value: str) -> None:
    refusal = refuse(webhook, headers=build_headers(x_webhook_signature=value))
    assert refusal.reason is Reason.SIGNATURE_VALUE_MISMATCH
    assert VALUE not in str(refusal)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"secret": generate_signing_secret()}, Reason.SIGNATURE_MISMATCH),
        ({"body": BODY + b" "}, Reason.SIGNATURE_MISMATCH),
        ({"webhook_id": "evt_2"}, Reason.SIGNATURE_MISMATCH),
        ({"webhook_id": "evt.1"}, Reason.MALFORMED_MESSAGE_ID),
        ({"webhook_timestamp": "soon"}, Reason.MALFORMED_TIMESTAMP),
        ({"webhook_timestamp": str(NOW - 301)}, Reason.TIMESTAMP_TOO_OLD),
        ({"webhook_timestamp": str(NOW + 301)}, Reason.TIMESTAMP_TOO_NEW),
        ({"webhook_signature": " ".join(["v1,x"] * 17)}, Reason.MALFORMED_SIGNATURE),
    ],
)
def test_another_signature_is_refused_although_the_value_holds(
    webhook: Webhook, changes: dict[str, Any], reason: Reason
) -> None:
    refusal = refuse(webhook, headers=build_headers(**changes))
    assert (refusal.reason, refusal.status) == (reason, 401)


def test_the_tolerance_is_the_receivers_to_choose() -> None:
    webhook = Webhook(signing_secret=SECRET, tolerance=10)
    assert webhook.verify(BODY, build_headers(), now=NOW + 10) == parse_event(BODY)
    refusal = refuse(webhook, now=NOW + 11)
    assert refusal.reason is Reason.TIMESTAMP_TOO_OLD


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", Reason.INVALID_EVENT),
        (b"{}", Reason.INVALID_EVENT),
        (b"\xff", Reason.INVALID_EVENT),
        (BODY.replace(b"appointment", b"a secret visit"), Reason.INVALID_EVENT),
        (BODY.replace(b'"patient_consultation_finished"', b'"a secret visit"'), Reason.UNKNOWN_EVENT_TYPE),
    ],
    ids=["empty", "no fields", "no UTF-8", "no model", "unknown type"],
)
def test_a_signed_body_that_is_no_event_is_told_apart(webhook: Webhook, body: bytes, reason: Reason) -> None:
    refusal = refuse(webhook, body, build_headers(body))
    assert (refusal.reason, refusal.status) == (reason, 400)
    assert "secret visit" not in str(refusal)


@pytest.mark.parametrize("body", [None, 5, [BODY], {"type": "x"}, "\ud800"], ids=repr)
def test_a_body_that_was_parsed_already_is_refused(webhook: Webhook, body: object) -> None:
    assert refuse(webhook, body).reason is Reason.MALFORMED_BODY


@pytest.mark.parametrize(
    "headers", [None, 5, ["x"], [("a", "b", "c")], [5], {"x-webhook-signature": None}, {"x-webhook-signature": [VALUE]}]
)
def test_headers_of_another_form_are_refused(webhook: Webhook, headers: Any) -> None:
    with pytest.raises(WebhookVerificationError) as refusal:
        webhook.verify(BODY, headers, now=NOW)
    assert refusal.value.reason is Reason.MALFORMED_HEADERS


def test_who_sent_it_is_checked_before_what_it_says(webhook: Webhook) -> None:
    assert refuse(webhook, b"no event", build_headers()).reason is Reason.SIGNATURE_MISMATCH


def test_every_failure_of_a_signature_has_its_reason() -> None:
    assert {failure.value for failure in SignatureFailure} <= {reason.value for reason in Reason}


# -- whatever is fed

names = st.sampled_from(["x-webhook-signature", "webhook-id", "webhook-timestamp", "webhook-signature"]) | st.text()
any_text = st.text(st.characters())
any_value = st.none() | st.integers() | st.binary() | any_text | st.sampled_from([VALUE, "evt_1", str(NOW), "v1,"])
any_headers = (
    st.dictionaries(names | st.binary(), any_value)
    | st.lists(st.tuples(names, any_value))
    | st.lists(any_value)
    | st.just(build_headers())
    | any_value
)


@given(body=st.binary() | any_text | any_value | st.just(BODY), headers=any_headers, now=st.floats(allow_nan=False))
def test_whatever_is_fed_gives_an_event_or_the_one_error(body: Any, headers: Any, now: float) -> None:
    outcomes = {find_outcome(webhook, body, headers, now) for webhook in RECEIVERS}
    assert outcomes <= {*CATALOGUE, *Reason}


RECEIVERS = [
    Webhook(signature_value=VALUE),
    Webhook(signing_secret=[SECRET, derive_public_key(generate_signing_key())]),
    Webhook(VALUE, SECRET),
]


def find_outcome(webhook: Webhook, body: Any, headers: Any, now: float) -> str:
    try:
        return webhook.verify(body, headers, now=now).type
    except WebhookVerificationError as refusal:
        return refusal.reason


# -- a wrong configuration is found at once


@pytest.mark.parametrize(
    ("value", "secret"),
    [
        (None, None),
        (None, []),
        (VALUE, []),
        ("", None),
        (" padded ", None),
        ("two\nlines", None),
        ("é", None),
        (VALUE, ""),
        (VALUE, "not a secret"),
        (VALUE, [SECRET, ""]),
    ],
)
def test_a_receiver_that_would_check_nothing_cannot_be_made(value: str | None, secret: str | list[str] | None) -> None:
    with pytest.raises(ValueError, match="sign"):
        Webhook(value, secret)


def test_a_receiver_shows_no_secret(webhook: Webhook) -> None:
    assert VALUE not in repr(webhook)
    assert all(SECRET not in repr(value) for value in vars(webhook).values())


# -- importing is light


def find_imported(statement: str) -> Iterable[str]:
    code = f"import sys\n{statement}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_importing_carehook_needs_pydantic_alone() -> None:
    heavy = {"fastapi", "starlette", "flask", "django", "sqlalchemy", "cryptography", "pyreqwest", "uvicorn", "orjson"}
    webhook = f"carehook.Webhook({VALUE!r}, {SECRET!r}).verify({BODY!r}, {build_headers()!r}, now={NOW})"
    imported = set(find_imported(f"import carehook\n{webhook}"))
    assert "pydantic" in imported
    assert not imported & heavy


def test_the_version_is_a_version() -> None:
    assert all(part.isdecimal() for part in carehook.__version__.split("."))
