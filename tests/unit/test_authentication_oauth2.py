"""The token request and its answer, as RFC 6749 §2.3.1, §4.4, §5.1 and §5.2 have them."""

from __future__ import annotations

import base64
import json
from urllib.parse import parse_qs, unquote_plus

import pytest
from pydantic import SecretStr

from carehook.directory.authentication import AccessToken, OAuth2ClientCredentials, TokenRefused
from carehook.exchange import Responded

FIELDS = {
    "type": "oauth2_client_credentials",
    "token_url": "https://login.example/token?tenant=1",
    "client_id": "my:client id",
    "client_secret": "s+cret/=&%:",
}


def method(**fields: object) -> OAuth2ClientCredentials:
    return OAuth2ClientCredentials.model_validate(FIELDS | fields)


def answer(status: int = 200, /, **members: object) -> Responded:
    return Responded(status, {"content-type": "application/json"}, json.dumps(members).encode())


def token(**members: object) -> AccessToken | TokenRefused:
    return method().read_token(answer(access_token="abc", token_type="Bearer", **members), now=1000.0)


def refusal(response: Responded) -> str:
    refused = method().read_token(response, now=0.0)
    assert isinstance(refused, TokenRefused)
    return refused.reason


def test_with_basic_the_credentials_are_form_encoded_in_the_header_alone() -> None:
    request = method(client_auth="basic").build_token_request()
    assert "+" not in base64.b64decode(request.headers["authorization"].removeprefix("Basic ")).decode()
    scheme, _, credentials = request.headers["authorization"].partition(" ")
    client_id, _, secret = base64.b64decode(credentials).decode().partition(":")
    assert scheme == "Basic"
    assert (unquote_plus(client_id), unquote_plus(secret)) == ("my:client id", "s+cret/=&%:")
    assert request.body == b"grant_type=client_credentials"


def test_with_post_the_credentials_are_in_the_body_alone() -> None:
    request = method(client_auth="post").build_token_request()
    assert "authorization" not in request.headers
    assert parse_qs(request.body.decode(), strict_parsing=True) == {
        "grant_type": ["client_credentials"],
        "client_id": ["my:client id"],
        "client_secret": ["s+cret/=&%:"],
    }


def test_the_token_request_is_a_form_to_the_token_url() -> None:
    request = method().build_token_request()
    assert (request.method, request.url) == ("POST", "https://login.example/token?tenant=1")
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert request.headers["accept"] == "application/json"
    assert request.headers["user-agent"].startswith("Carehook/")


def test_scope_and_audience_are_sent_when_given() -> None:
    form = parse_qs(method(scope="a b:write", audience="https://api.example/").build_token_request().body.decode())
    assert form["scope"] == ["a b:write"]
    assert form["audience"] == ["https://api.example/"]


def test_without_client_auth_it_is_basic() -> None:
    assert method().client_auth == "basic"


@pytest.mark.parametrize(
    ("expires_in", "used_for"),
    [
        (3600, 3570.0),  # 30 s before the end
        (300, 270.0),
        (60, 54.0),  # a tenth before the end
        (1, 0.9),
        (0, 0.0),
        (-5, 0.0),
        (3600.5, 3570.5),
        ("3600", 3570.0),
        (10**30, 86_370.0),  # a day at most
        (None, 270.0),  # 5 minutes by default
        ("soon", 270.0),
        ("", 270.0),
        ("-1", 270.0),
        ("٣", 270.0),
        (True, 270.0),
        ([60], 270.0),
    ],
    ids=repr,
)
def test_a_token_is_used_until_shortly_before_it_expires(expires_in: object, used_for: float) -> None:
    read = token(expires_in=expires_in)
    assert isinstance(read, AccessToken)
    assert read.value == SecretStr("abc")
    assert read.expires_at == pytest.approx(1000.0 + used_for)


def test_a_token_without_expiry_lives_five_minutes_less_the_margin() -> None:
    assert token() == AccessToken(SecretStr("abc"), 1270.0)


@pytest.mark.parametrize("token_type", ["bearer", "BEARER", "Bearer"])
def test_the_token_type_ignores_case(token_type: str) -> None:
    read = method().read_token(answer(access_token="abc", token_type=token_type), now=0.0)
    assert isinstance(read, AccessToken)


@pytest.mark.parametrize("members", [{}, {"token_type": "mac"}, {"token_type": None}, {"token_type": 1}])
def test_a_token_of_another_type_is_refused(members: dict[str, object]) -> None:
    assert "token_type is Bearer" in refusal(answer(access_token="abc", **members))


@pytest.mark.parametrize("value", [None, "", 1, "a b", "a\r\nx: y", "é", "a\n", "x" * 4090, {"a": 1}])
def test_a_token_that_does_not_fit_in_a_header_is_refused_and_not_shown(value: object) -> None:
    reason = refusal(answer(access_token=value, token_type="bearer"))
    assert reason == "the authorization server's answer has no access_token that fits in a header"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'"token"',
        b"null",
        b"\xff\xfe",
        b"[" * 4096,
        b'{"access_token": "abc", "token_type": "bearer", "expires_in": Infinity}',
        json.dumps({"token_type": "bearer", "access_token": "x" * 5000}).encode()[:4096],
    ],
)
def test_an_answer_that_is_no_json_object_or_was_cut_off_is_refused(body: bytes) -> None:
    assert refusal(Responded(200, {}, body)).endswith("is not a JSON object of at most 4 KiB")


def test_a_refusal_gives_the_error_code_and_advice_but_never_the_description() -> None:
    reason = refusal(answer(401, error="invalid_client", error_description="secret s+cret/=&%: is wrong"))
    assert reason.startswith("the authorization server answered 401 invalid_client: check client_id")
    assert "s+cret" not in reason


@pytest.mark.parametrize(
    "response",
    [
        answer(500, error="s+cret/=&%:"),
        answer(500, error="invalid_client\r\nx"),
        answer(500, error="a" * 41),
        answer(500, error=["invalid_client"]),
        answer(500),
        Responded(500, {}, b"[]"),
        Responded(500, {}, b"<html>s+cret"),
    ],
)
def test_an_error_that_is_no_short_code_is_left_out(response: Responded) -> None:
    assert refusal(response) == "the authorization server answered 500"


def test_an_error_code_that_we_have_no_advice_for_is_given_alone() -> None:
    assert refusal(answer(503, error="temporarily_unavailable")) == (
        "the authorization server answered 503 temporarily_unavailable"
    )


def test_a_redirect_is_a_refusal() -> None:
    moved = Responded(302, {"location": "https://other.example"}, answer(access_token="a", token_type="bearer").body)
    assert refusal(moved) == "the authorization server answered 302"


@pytest.mark.parametrize(
    "changed",
    [
        {"token_url": "https://other.example/token"},
        {"client_id": "other"},
        {"client_secret": "other"},
        {"scope": "other"},
        {"audience": "other"},
        {"client_auth": "post"},
    ],
)
def test_the_fingerprint_depends_on_every_field(changed: dict[str, object]) -> None:
    assert method().compute_fingerprint() == method().compute_fingerprint()
    assert method(**changed).compute_fingerprint() != method().compute_fingerprint()


def test_the_fingerprint_test_knows_every_field() -> None:
    known = {"type", "token_url", "client_id", "client_secret", "scope", "audience", "client_auth"}
    assert set(OAuth2ClientCredentials.model_fields) == known
