"""Which credentials can be sent at all: the rules of RFC 9110 §5, RFC 7617 §2 and RFC 6749 appendix A."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from carehook.directory.authentication import AUTHENTICATION, MASK, HeadersAuthentication
from carehook.directory.authentication.headers import RESERVED_NAMES


def refusal(document: dict[str, object]) -> tuple[tuple[str | int, ...], str]:
    """Where and why `document` is refused: the one error's location and message."""
    with pytest.raises(ValidationError) as raised:
        AUTHENTICATION.validate_python(document)
    (error,) = raised.value.errors(include_input=False, include_url=False)
    return error["loc"], error["msg"]


def oauth2(**fields: object) -> dict[str, object]:
    return {
        "type": "oauth2_client_credentials",
        "token_url": "https://login.example/token",
        "client_id": "id",
        "client_secret": "secret",
        **fields,
    }


@pytest.mark.parametrize(
    "document",
    [
        {"type": "basic", "username": ":", "password": ""},
        {"type": "basic", "username": "", "password": "\n"},
        {"type": "basic", "username": "", "password": MASK},
        {"type": "bearer", "token": "a b"},
        {"type": "headers", "headers": {"x-key": "\n"}},
        {"type": "headers", "headers": {"": "value"}},
        {"type": "headers", "headers": {"host": "value"}},
        {"type": "headers", "headers": {"X-Key": "1", "x-key": "2"}},
        oauth2(client_id="\n"),
        oauth2(scope=" "),
        oauth2(token_url="/"),
    ],
)
def test_a_rule_is_a_clause_that_follows_the_name_of_its_field(document: dict[str, object]) -> None:
    _, message = refusal(document)
    assert message.startswith("must ")
    assert not message.endswith(".")


@pytest.mark.parametrize("username", ["a:b", ":", "a\nb", "a\x00", "\x7f", "a\x85"])
def test_a_user_name_has_no_colon_and_no_control_character(username: str) -> None:
    location, message = refusal({"type": "basic", "username": username, "password": ""})
    assert location == ("basic", "username")
    assert message == "must have no colon and no control characters (RFC 7617)"


@pytest.mark.parametrize("password", ["a\nb", "\r", "a\x00", "\x7f", "\x9b"])
def test_a_password_has_no_control_character(password: str) -> None:
    location, message = refusal({"type": "basic", "username": "a", "password": password})
    assert location == ("basic", "password")
    assert message == "must have no control characters (RFC 7617)"


@pytest.mark.parametrize("token", ["Bearer abc", "a b", " a", "a\n", "a\r\nb", "é", "a\x00", "\t"])
def test_a_token_is_visible_ascii_without_spaces(token: str) -> None:
    location, message = refusal({"type": "bearer", "token": token})
    assert location == ("bearer", "token")
    assert message.startswith("must be visible ASCII without spaces, and without the word")


@pytest.mark.parametrize("value", [" a", "a ", "a\r\nb: c", "a\n", "a\tb", "é", "\x00", "a\x7f"])
def test_a_header_value_is_visible_ascii(value: str) -> None:
    location, message = refusal({"type": "headers", "headers": {"x-key": value}})
    assert location == ("headers", "headers", "x-key")
    assert message.startswith("must be visible ASCII, without line breaks")


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\n", "a\r\n", "é", "(a)", "a,b", 'a"', "a/b", "x" * 101])
def test_a_header_name_is_a_token(name: str) -> None:
    location, message = refusal({"type": "headers", "headers": {name: "value"}})
    assert location == ("headers", "headers")
    assert message.startswith("must have names of 1 to 100 ASCII letters")


@pytest.mark.parametrize(
    "name",
    [
        *sorted(RESERVED_NAMES),
        "Host",
        "CONTENT-LENGTH",
        "Webhook-Signature",
        "webhook-id",
        "webhook-",
        "Proxy-Authorization",
        "proxy-connection",
        "X-Webhook-Signature",
    ],
)
def test_a_header_that_is_carehooks_own_is_refused_by_its_name(name: str) -> None:
    location, message = refusal({"type": "headers", "headers": {name: "value"}})
    assert location == ("headers", "headers")
    assert message == f"must not have the header '{name.lower()}', which is Carehook's own to set"


def test_every_name_that_frames_the_message_or_is_set_by_us_is_reserved() -> None:
    assert {
        *("host", "content-length", "content-type", "transfer-encoding", "connection", "te", "trailer", "upgrade"),
        *("expect", "user-agent", "x-webhook-signature", "keep-alive", "accept-encoding"),
    } <= RESERVED_NAMES


@pytest.mark.parametrize("name", ["x-api-key", "Authorization", "cookie", "webhook", "x-proxy-key", "Ocp-Apim_Key~1"])
def test_other_headers_are_free_and_their_names_become_lower_case(name: str) -> None:
    method = HeadersAuthentication.model_validate({"type": "headers", "headers": {name: "value"}})
    assert list(method.headers) == [name.lower()]


def test_a_header_is_not_given_twice_in_different_case() -> None:
    _, message = refusal({"type": "headers", "headers": {"X-Key": "1", "x-key": "2"}})
    assert message == "must not have the header 'x-key' twice: names ignore case"


@pytest.mark.parametrize("count", [0, 21])
def test_there_are_one_to_twenty_headers(count: int) -> None:
    location, _ = refusal({"type": "headers", "headers": {f"x-{number}": "value" for number in range(count)}})
    assert location == ("headers", "headers")


def test_lengths_keep_every_header_within_four_kibibytes() -> None:
    exact: list[dict[str, object]] = [
        {"type": "headers", "headers": {f"x-{number}": "v" * 4096 for number in range(20)}},
        {"type": "bearer", "token": "t" * 4089},
        {"type": "basic", "username": "\U0001f600" * 255, "password": "\U0001f600" * 500},
    ]
    over: list[dict[str, object]] = [
        {"type": "headers", "headers": {"x-1": "v" * 4097}},
        {"type": "bearer", "token": "t" * 4090},
        {"type": "basic", "username": "u" * 256, "password": "p"},
        {"type": "basic", "username": "u", "password": "p" * 501},
    ]
    for document in exact:
        AUTHENTICATION.validate_python(document)
    assert ["at most" in refusal(document)[1] for document in over] == [True] * len(over)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/token",
        "login.example/token",
        "ftp://login.example/token",
        "https://",
        "https:///token",
        "https://:443/token",
        "https://user:password@login.example/token",
        "https://@login.example/token",
        "https://login.example/token#fragment",
        "https://login.example/token#",
        "https://login.example/to ken",
        "https://login.example/token\n",
        "https://login.example\\@other.example/token",
        "https://login.example:99999/token",
        "https://[::1/token",
        "https://lögin.example/token",
    ],
)
def test_a_token_url_must_be_one_that_can_be_asked(url: str) -> None:
    location, message = refusal(oauth2(token_url=url))
    assert location == ("oauth2_client_credentials", "token_url")
    assert message == "must be an absolute https URL, without credentials and without '#'"


@pytest.mark.parametrize(
    "url",
    [
        "https://login.example",
        "http://127.0.0.1:9/t",
        "https://[::1]:8443/t?tenant=a%20b",
        "HTTPS://L.example/@t",
        "https://l.example?for=a@b",
    ],
)
def test_a_token_url_keeps_its_form(url: str) -> None:
    assert AUTHENTICATION.validate_python(oauth2(token_url=url)).contacted_urls == (("token_url", url),)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("client_id", ""),
        ("client_id", "é"),
        ("client_id", "a\n"),
        ("client_secret", ""),
        ("client_secret", "a\x00"),
        ("scope", ""),
        ("scope", " a"),
        ("scope", "a  b"),
        ("scope", 'a"b'),
        ("scope", "a\\b"),
        ("audience", ""),
        ("audience", "a\nb"),
        ("client_auth", "none"),
        ("client_auth", None),
    ],
)
def test_oauth2_fields_have_the_characters_of_their_specification(field: str, value: object) -> None:
    location, _ = refusal(oauth2(**{field: value}))
    assert location == ("oauth2_client_credentials", field)
