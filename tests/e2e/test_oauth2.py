"""OAuth 2.0 client credentials against a real authorization server: over the guarded sender, on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_network

import pytest
from pydantic import SecretStr

from carehook.directory.authentication import OAuth2ClientCredentials, TokenNeeded
from carehook.dispatch.access_tokens import AccessTokens
from carehook.dispatch.addresses import AddressRules
from carehook.dispatch.sender import GuardedSender, Sender
from carehook.exchange import Blocked, Outcome, Request, Responded, Unreachable
from tests.servers.authorization_server import BASIC_CLIENT, POST_CLIENT, SECRET, AuthorizationServer


class Clock:
    """Stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def process() -> Iterator[AuthorizationServer]:
    with AuthorizationServer() as server:
        yield server


@pytest.fixture
def server(process: AuthorizationServer) -> AuthorizationServer:
    process.reset()
    return process


@pytest.fixture
async def sender() -> AsyncIterator[Sender]:
    sender = GuardedSender(AddressRules([ip_network("127.0.0.0/8")], allow_http=True))
    yield sender
    await sender.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(sender: Sender, clock: Clock) -> AccessTokens:
    return AccessTokens(sender, clock)


def build_method(token_url: str, **fields: str) -> OAuth2ClientCredentials:
    document = {
        "type": "oauth2_client_credentials",
        "token_url": token_url,
        "client_id": BASIC_CLIENT,
        "client_secret": SECRET,
    }
    return OAuth2ClientCredentials.model_validate(document | fields)


async def send_authenticated(
    method: OAuth2ClientCredentials, url: str, sender: Sender, tokens: AccessTokens
) -> Outcome:
    """Drive the flow for one request, and give its last outcome."""
    flow = method.authenticate(Request("POST", url, {"content-type": "application/json"}, b"{}"))
    step = next(flow)
    while True:
        answer = await tokens.get(step) if isinstance(step, TokenNeeded) else await sender.send(step)
        if not isinstance(answer, Responded | SecretStr):
            return answer
        try:
            step = flow.send(answer)
        except StopIteration:
            assert isinstance(answer, Responded)
            return answer


@pytest.mark.parametrize(
    "fields",
    [
        {"client_auth": "basic", "client_id": BASIC_CLIENT},
        {"client_auth": "post", "client_id": POST_CLIENT},
    ],
    ids=["basic", "post"],
)
async def test_both_ways_of_client_authentication_get_a_token_that_the_receiver_takes(
    server: AuthorizationServer, sender: Sender, tokens: AccessTokens, fields: dict[str, str]
) -> None:
    outcome = await send_authenticated(build_method(server.token_url, **fields), f"{server.url}/hook", sender, tokens)
    assert isinstance(outcome, Responded)
    assert (outcome.status, outcome.body) == (200, b"received")
    assert server.get_hooks() == ["{}"]


async def test_scope_and_audience_arrive(server: AuthorizationServer, tokens: AccessTokens) -> None:
    method = build_method(server.token_url, scope="webhooks:read webhooks:write", audience="https://api.example/?a=1&b")
    assert isinstance(await tokens.get(TokenNeeded(method)), SecretStr)
    assert isinstance(await tokens.get(TokenNeeded(build_method(server.token_url))), SecretStr)
    assert server.get_token_requests() == [
        {"scope": "webhooks:read webhooks:write", "audience": "https://api.example/?a=1&b"},
        {"scope": None, "audience": None},
    ]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"client_secret": "wrong"}, "401 invalid_client: check client_id, client_secret and client_auth"),
        ({"client_id": "nobody"}, "401 invalid_client: check client_id, client_secret and client_auth"),
        ({"client_auth": "post"}, "401 invalid_client: check client_id, client_secret and client_auth"),
        ({"scope": "everything"}, "400 invalid_scope: check scope"),
    ],
    ids=["secret", "client", "client_auth", "scope"],
)
async def test_what_the_server_refuses_is_a_plain_failure_and_nothing_is_sent(
    server: AuthorizationServer, sender: Sender, tokens: AccessTokens, fields: dict[str, str], reason: str
) -> None:
    outcome = await send_authenticated(build_method(server.token_url, **fields), f"{server.url}/hook", sender, tokens)
    assert outcome == Unreachable(f"the authorization server answered {reason}")
    assert server.get_hooks() == []


async def test_fifty_deliveries_at_once_fetch_one_token(
    server: AuthorizationServer, sender: Sender, tokens: AccessTokens
) -> None:
    method = build_method(server.token_url)
    outcomes = await asyncio.gather(
        *(send_authenticated(method, f"{server.url}/hook", sender, tokens) for _ in range(50))
    )
    assert {outcome.status for outcome in outcomes if isinstance(outcome, Responded)} == {200}
    assert len(server.get_hooks()) == 50
    assert len(server.get_token_requests()) == 1


async def test_a_token_is_fetched_anew_when_it_expires(
    server: AuthorizationServer, tokens: AccessTokens, clock: Clock
) -> None:
    needed = TokenNeeded(build_method(server.token_url))
    first = await tokens.get(needed)
    assert await tokens.get(needed) == first
    clock.now = 1_000_000.0
    second = await tokens.get(needed)
    assert isinstance(second, SecretStr)
    assert second != first
    assert len(server.get_token_requests()) == 2


async def test_a_revoked_token_costs_one_fetch_and_one_more_request(
    server: AuthorizationServer, sender: Sender, tokens: AccessTokens
) -> None:
    method = build_method(server.token_url)
    await tokens.get(TokenNeeded(method))
    server.revoke_all()
    outcome = await send_authenticated(method, f"{server.url}/hook", sender, tokens)
    assert isinstance(outcome, Responded)
    assert outcome.is_success
    assert server.get_hooks() == ["{}", "{}"]
    assert len(server.get_token_requests()) == 2


async def test_a_receiver_that_always_says_401_is_asked_twice_and_no_more(
    server: AuthorizationServer, sender: Sender, tokens: AccessTokens
) -> None:
    outcome = await send_authenticated(build_method(server.token_url), f"{server.url}/closed-hook", sender, tokens)
    assert isinstance(outcome, Responded)
    assert outcome.status == 401
    assert len(server.get_hooks()) == 2
    assert len(server.get_token_requests()) == 2


async def test_many_deliveries_whose_token_was_revoked_fetch_one_new_token(
    server: AuthorizationServer, sender: Sender, tokens: AccessTokens
) -> None:
    method = build_method(server.token_url)
    await tokens.get(TokenNeeded(method))
    server.revoke_all()
    outcomes = await asyncio.gather(
        *(send_authenticated(method, f"{server.url}/hook", sender, tokens) for _ in range(20))
    )
    assert {outcome.status for outcome in outcomes if isinstance(outcome, Responded)} == {200}
    assert len(server.get_token_requests()) == 2


async def test_a_broken_server_is_asked_anew_by_the_next_delivery(
    server: AuthorizationServer, tokens: AccessTokens
) -> None:
    server.break_down()
    needed = TokenNeeded(build_method(server.token_url))
    assert await tokens.get(needed) == Unreachable("the authorization server answered 503")
    assert await tokens.get(needed) == Unreachable("the authorization server answered 503")
    assert len(server.get_token_requests()) == 2


async def test_the_token_url_is_under_the_address_rules(server: AuthorizationServer, clock: Clock) -> None:
    strict = GuardedSender(AddressRules(allow_http=True))
    outcome = await AccessTokens(strict, clock).get(TokenNeeded(build_method(server.token_url)))
    await strict.close()
    assert isinstance(outcome, Blocked)
    assert outcome.reason.startswith("no access token from the authorization server: ")
    assert server.get_token_requests() == []


async def test_a_server_that_is_not_there_is_unreachable(tokens: AccessTokens, free_port: int) -> None:
    method = build_method(f"http://127.0.0.1:{free_port}/token")
    outcome = await tokens.get(TokenNeeded(method))
    assert isinstance(outcome, Unreachable)
    assert outcome.reason.startswith("no access token from the authorization server: ")
