"""Standard Webhooks: the vectors, and an independent implementation as an oracle."""

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from carehook.signature import (
    InvalidSignature,
    SignatureFailure,
    SigningSecret,
    derive_public_key,
    generate_signing_key,
    generate_signing_secret,
    sign,
    verify,
)

VECTORS: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "signatures.json").read_text("utf-8")
)
NOW = 1704063600


def parse_all(texts: list[str]) -> list[SigningSecret]:
    return [SigningSecret.parse(text) for text in texts]


@pytest.mark.parametrize("case", VECTORS["sign"], ids=lambda case: case["name"])
def test_signs_as_the_vectors_say(case: dict[str, Any]) -> None:
    body = base64.b64decode(case["body"])
    assert sign(case["id"], case["timestamp"], body, parse_all(case["secrets"])) == case["signature"]


@pytest.mark.parametrize("case", VECTORS["verify"], ids=lambda case: case["name"])
def test_verifies_as_the_vectors_say(case: dict[str, Any]) -> None:
    try:
        verify(
            case["id"],
            case["timestamp"],
            base64.b64decode(case["body"]),
            case["signature"],
            parse_all(case["secrets"]),
            now=case["now"],
            tolerance=case["tolerance"],
        )
    except InvalidSignature as refusal:
        reason: str | None = refusal.failure
    else:
        reason = None
    assert reason == case["reason"]
    assert case["valid"] == (reason is None)


def test_vectors_cover_every_failure() -> None:
    reasons = {case["reason"] for case in VECTORS["verify"]}
    assert reasons == {None, *SignatureFailure}


@given(body=st.text(), key=st.binary(min_size=24, max_size=64))
def test_the_reference_library_accepts_what_we_sign(body: str, key: bytes) -> None:
    text = "whsec_" + base64.b64encode(key).decode()
    timestamp = int(datetime.now(UTC).timestamp())
    header = sign("evt_1", timestamp, body.encode(), [SigningSecret.parse(text)])
    headers = {"webhook-id": "evt_1", "webhook-timestamp": str(timestamp), "webhook-signature": header}
    ours_as_json = json.dumps(body)
    signed_json = sign("evt_1", timestamp, ours_as_json.encode(), [SigningSecret.parse(text)])

    assert standardwebhooks.Webhook(text).sign("evt_1", datetime.fromtimestamp(timestamp, UTC), body) == header
    assert standardwebhooks.Webhook(text).verify(ours_as_json, {**headers, "webhook-signature": signed_json}) == body


@given(message_id=st.text(), timestamp=st.text(), body=st.binary(), signatures=st.text())
def test_any_input_is_refused_with_the_one_error(message_id: str, timestamp: str, body: bytes, signatures: str) -> None:
    for secret in (SigningSecret.parse(generate_signing_secret()), SigningSecret.parse(generate_signing_key())):
        with pytest.raises(InvalidSignature):
            verify(message_id, timestamp, body, signatures, [secret], now=NOW)


def test_a_receiver_with_the_old_secret_accepts_during_a_rotation() -> None:
    old, new = (SigningSecret.parse(generate_signing_secret()) for _ in range(2))
    header = sign("evt_1", NOW, b"{}", [new, old])

    for held in (old, new):
        verify("evt_1", str(NOW), b"{}", header, [held], now=NOW)
    assert len(header.split(" ")) == 2


def test_a_public_key_verifies_what_its_private_key_signed() -> None:
    private = generate_signing_key()
    public = SigningSecret.parse(derive_public_key(private))
    header = sign("evt_1", NOW, b"{}", [SigningSecret.parse(private)])

    verify("evt_1", str(NOW), b"{}", header, [public], now=NOW)
    with pytest.raises(InvalidSignature):
        verify("evt_1", str(NOW), b"{ }", header, [public], now=NOW)
    with pytest.raises(ValueError, match="verifies only"):
        sign("evt_1", NOW, b"{}", [public])


def test_generated_secrets_are_new_each_time_and_32_bytes() -> None:
    first, second = generate_signing_secret(), generate_signing_secret()
    assert first != second
    assert len(base64.b64decode(first.removeprefix("whsec_"))) == 32


def of_bytes(prefix: str, size: int) -> str:
    return prefix + base64.b64encode(bytes(size)).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "whsec_",
        "whsec_%%%",
        "whsec_ñ",
        "WHSEC_" + "A" * 32,
        "A" * 32,
        of_bytes("whsec_", 23),
        of_bytes("whsec_", 65),
        of_bytes("whsk_", 31),
        of_bytes("whsk_", 33),
        of_bytes("whsk_", 64),
        of_bytes("whpk_", 31),
        of_bytes("whpk_", 33),
    ],
)
def test_refuses_a_secret_of_another_form_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"whsec_|whsk_|whpk_|base64") as refusal:
        SigningSecret.parse(text)
    assert len(text) < 8 or text not in str(refusal.value)


@pytest.mark.parametrize("message_id", ["", "evt.1", "evt 1", "evt_1\r\nx: y", "évt"])
def test_refuses_to_sign_an_id_that_a_header_or_the_signature_cannot_hold(message_id: str) -> None:
    with pytest.raises(ValueError, match="webhook-id"):
        sign(message_id, NOW, b"{}", [SigningSecret.parse(generate_signing_secret())])


def test_refuses_to_sign_with_nothing() -> None:
    with pytest.raises(ValueError, match="needs a secret"):
        sign("evt_1", NOW, b"{}", [])


def test_only_a_private_key_has_a_public_key() -> None:
    with pytest.raises(ValueError, match="whsk_"):
        derive_public_key(generate_signing_secret())


@pytest.mark.parametrize("generate", [generate_signing_secret, generate_signing_key])
def test_a_secret_is_masked_in_its_repr(generate: Any) -> None:
    text = generate()
    shown = f"{SigningSecret.parse(text)!r} {SigningSecret.parse(text)}"
    assert text.partition("_")[2] not in shown
    assert "**********" in shown
