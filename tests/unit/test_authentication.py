"""What holds for every authentication method: its secrets stay masked, and its flow replays without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError

import carehook.directory.authentication as package
from carehook.directory.authentication import (
    AUTHENTICATION,
    MASK,
    REVEAL_SECRETS,
    Authentication,
    AuthenticationFlow,
    AuthenticationMethod,
    OAuth2ClientCredentials,
    TokenNeeded,
)
from carehook.exchange import Request, Responded

REQUEST = Request("POST", "https://receiver.example/hook", {"content-type": "application/json"}, b"{}")

FIXED: list[tuple[dict[str, object], dict[str, str]]] = [
    ({"type": "none"}, {}),
    # The example of RFC 7617 §2, and the one of its §2.1 with a user name outside ASCII.
    (
        {"type": "basic", "username": "Aladdin", "password": "open sesame"},
        {"authorization": "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="},
    ),
    ({"type": "basic", "username": "test", "password": "123£"}, {"authorization": "Basic dGVzdDoxMjPCow=="}),
    ({"type": "basic", "username": "key", "password": ""}, {"authorization": "Basic a2V5Og=="}),
    ({"type": "basic", "username": "a", "password": "b:c"}, {"authorization": "Basic YTpiOmM="}),
    ({"type": "bearer", "token": "mF_9.B5f-4.1JqM"}, {"authorization": "Bearer mF_9.B5f-4.1JqM"}),
    (
        {"type": "headers", "headers": {"X-Api-Key": "31d8 d2", "authorization": "ApiKey 7"}},
        {"x-api-key": "31d8 d2", "authorization": "ApiKey 7"},
    ),
]

SECRET = "s3cret-s3cret"
OAUTH2: dict[str, object] = {
    "type": "oauth2_client_credentials",
    "token_url": "https://login.example/token",
    "client_id": "id",
    "client_secret": SECRET,
}
WITH_SECRET: list[dict[str, object]] = [
    {"type": "basic", "username": "u", "password": SECRET},
    {"type": "bearer", "token": SECRET},
    {"type": "headers", "headers": {"x-api-key": SECRET, "x-other": SECRET}},
    OAUTH2,
]


def replay(flow: AuthenticationFlow, *answers: Responded | SecretStr) -> list[Request | TokenNeeded]:
    """The steps of `flow` when each is answered by the next of `answers`; it must end after the last."""
    steps = [next(flow), *(flow.send(answer) for answer in answers[:-1])]
    with pytest.raises(StopIteration):
        flow.send(answers[-1])
    return steps


def methods() -> tuple[type[AuthenticationMethod], ...]:
    union, *_ = get_args(Authentication)
    return get_args(union)


@pytest.mark.parametrize(("document", "added"), FIXED, ids=str)
@pytest.mark.parametrize("status", [200, 401, 500])
def test_a_fixed_method_adds_its_headers_and_sends_once(
    document: dict[str, object], added: dict[str, str], status: int
) -> None:
    flow = AUTHENTICATION.validate_python(document).authenticate(REQUEST)
    assert replay(flow, Responded(status)) == [REQUEST.with_headers(added)]


def test_oauth2_asks_for_a_token_and_sends_once() -> None:
    method = OAuth2ClientCredentials.model_validate(OAUTH2)
    steps = replay(method.authenticate(REQUEST), SecretStr("first"), Responded(204))
    assert steps == [TokenNeeded(method), REQUEST.with_headers({"authorization": "Bearer first"})]


@pytest.mark.parametrize("status", [200, 401])
def test_oauth2_asks_anew_once_on_a_401_and_ends_whatever_comes_then(status: int) -> None:
    method = OAuth2ClientCredentials.model_validate(OAUTH2)
    answers: list[Responded | SecretStr] = [SecretStr("first"), Responded(401), SecretStr("second"), Responded(status)]
    assert replay(method.authenticate(REQUEST), *answers) == [
        TokenNeeded(method),
        REQUEST.with_headers({"authorization": "Bearer first"}),
        TokenNeeded(method, rejected=SecretStr("first")),
        REQUEST.with_headers({"authorization": "Bearer second"}),
    ]


@pytest.mark.parametrize("status", [400, 403, 407, 500, 503])
def test_oauth2_takes_no_other_failure_for_a_rejected_token(status: int) -> None:
    method = OAuth2ClientCredentials.model_validate(OAUTH2)
    assert len(replay(method.authenticate(REQUEST), SecretStr("first"), Responded(status))) == 2


def test_a_driver_that_answers_the_wrong_kind_of_step_is_told() -> None:
    flow = OAuth2ClientCredentials.model_validate(OAUTH2).authenticate(REQUEST)
    next(flow)
    with pytest.raises(TypeError, match="answered with an access token"):
        flow.send(Responded(200))


def test_every_method_file_is_in_the_union() -> None:
    folder = Path(str(package.__file__)).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "fields", "flow"}
    assert {method.__module__.rpartition(".")[2] for method in methods()} == files


@pytest.mark.parametrize("method", methods())
def test_every_method_is_documented_by_an_example_that_is_valid(method: type[AuthenticationMethod]) -> None:
    schema = method.model_json_schema()
    assert schema["description"]
    assert schema["examples"]
    for example in schema["examples"]:
        parsed = AUTHENTICATION.validate_python(example)
        assert type(parsed) is method
        assert json.loads(parsed.model_dump_json(context=REVEAL_SECRETS, exclude_unset=True)) == example


@pytest.mark.parametrize("document", WITH_SECRET, ids=lambda document: str(document["type"]))
def test_no_secret_is_seen_in_any_form_but_the_revealed_one(document: dict[str, object]) -> None:
    method = AUTHENTICATION.validate_python(document)
    shown = [repr(method), str(method), str(method.model_dump()), repr(next(method.authenticate(REQUEST)))]
    masked = [method.model_dump_json(), json.dumps(method.model_dump(mode="json"))]
    masked += [AUTHENTICATION.dump_json(method).decode(), method.model_dump_json(context={"reveal_secrets": 1})]
    assert [text for text in shown + masked if SECRET in text] == []
    assert [text for text in masked if MASK not in text] == []


@pytest.mark.parametrize("document", [*WITH_SECRET, {"type": "none"}], ids=lambda document: str(document["type"]))
def test_what_is_revealed_parses_back_also_inside_another_model(document: dict[str, object]) -> None:
    class Secrets(BaseModel):
        authentication: Authentication

    secrets = Secrets.model_validate({"authentication": document})
    revealed = secrets.model_dump_json(context=REVEAL_SECRETS)
    assert revealed.count(MASK) == 0
    assert Secrets.model_validate_json(revealed) == secrets
    assert MASK in secrets.model_dump_json() or document["type"] == "none"


@pytest.mark.parametrize("document", WITH_SECRET, ids=lambda document: str(document["type"]))
def test_a_masked_method_is_not_taken_for_a_new_one(document: dict[str, object]) -> None:
    masked = AUTHENTICATION.validate_python(document).model_dump(mode="json")
    with pytest.raises(ValidationError, match="give the secret itself"):
        AUTHENTICATION.validate_python(masked)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"type": "digest"},
        {"type": "none", "token": SECRET},
        {"type": "basic", "username": SECRET},
        {"type": "basic", "username": f"{SECRET}:", "password": f"{SECRET}\n"},
        {"type": "bearer", "token": f"Bearer {SECRET}"},
        {"type": "bearer", "token": [SECRET]},
        {"type": "headers", "headers": {"x-key": f"{SECRET}\r\nx-other: 1"}},
        {"type": "headers", "headers": SECRET},
    ],
)
def test_what_is_refused_is_not_repeated_in_the_error(document: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as raised:
        AUTHENTICATION.validate_python(document)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("method", methods())
def test_a_method_on_its_own_does_not_repeat_what_it_refuses_either(method: type[AuthenticationMethod]) -> None:
    with pytest.raises(ValidationError) as raised:
        method.model_validate({"type": SECRET, "surplus": SECRET})
    assert SECRET not in str(raised.value)


def test_a_method_cannot_be_changed_once_made() -> None:
    method = AUTHENTICATION.validate_python({"type": "bearer", "token": "a"})
    with pytest.raises(ValidationError, match="frozen"):
        setattr(method, "type", "none")  # noqa: B010 (mypy knows that it cannot be assigned)


def test_only_oauth2_contacts_another_url() -> None:
    contacted = [AUTHENTICATION.validate_python(document).contacted_urls for document in WITH_SECRET]
    assert contacted == [(), (), (), (("token_url", "https://login.example/token"),)]


def test_the_schema_is_what_an_openapi_document_needs() -> None:
    schema = TypeAdapter(Authentication).json_schema()
    assert schema["discriminator"]["propertyName"] == "type"
    assert len(schema["oneOf"]) == len(methods())
    assert all("type" in definition["required"] for definition in schema["$defs"].values())
