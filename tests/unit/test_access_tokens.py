"""Tokens are fetched once for all who wait, kept until they expire, and never survive changed credentials."""

from __future__ import annotations

import asyncio
import json

import pytest
from pydantic import SecretStr

from carehook.directory.authentication import OAuth2ClientCredentials, TokenNeeded
from carehook.dispatch.access_tokens import AccessTokens
from carehook.exchange import Blocked, Interrupted, Outcome, Request, Responded, Unreachable


def build_method(client_id: str = "id", **fields: str) -> OAuth2ClientCredentials:
    return OAuth2ClientCredentials.model_validate(
        {
            "type": "oauth2_client_credentials",
            "token_url": "https://login.example/token",
            "client_id": client_id,
            "client_secret": "secret",
        }
        | fields
    )


class AuthorizationServer:
    """Answers token requests with token-1, token-2, ... when the gate is open, or with `outcome` if that is set."""

    def __init__(self) -> None:
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.outcome: Outcome | None = None

    async def send(self, request: Request) -> Outcome:
        self.asked += 1
        number = self.asked
        await self.gate.wait()
        if self.outcome is not None:
            return self.outcome
        members = {"access_token": f"token-{number}", "token_type": "bearer", "expires_in": 3600}
        return Responded(200, {}, json.dumps(members).encode())


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server() -> AuthorizationServer:
    return AuthorizationServer()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(server: AuthorizationServer, clock: Clock) -> AccessTokens:
    return AccessTokens(server, clock)


async def settle() -> None:
    """Let every task that can run come to its next wait."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_token_is_kept_until_it_expires(
    tokens: AccessTokens, server: AuthorizationServer, clock: Clock
) -> None:
    assert await tokens.get(TokenNeeded(build_method())) == SecretStr("token-1")
    clock.now = 3569.9
    assert await tokens.get(TokenNeeded(build_method())) == SecretStr("token-1")
    clock.now = 3570.0
    assert await tokens.get(TokenNeeded(build_method())) == SecretStr("token-2")
    assert server.asked == 2


async def test_the_lifetime_counts_from_the_request_not_from_a_late_answer(
    tokens: AccessTokens, server: AuthorizationServer, clock: Clock
) -> None:
    server.gate.clear()
    caller = asyncio.create_task(tokens.get(TokenNeeded(build_method())))
    await settle()
    clock.now = 3000.0
    server.gate.set()
    assert await caller == SecretStr("token-1")
    clock.now = 3570.0
    assert await tokens.get(TokenNeeded(build_method())) == SecretStr("token-2")


async def test_many_who_wait_share_one_fetch(tokens: AccessTokens, server: AuthorizationServer) -> None:
    got = await asyncio.gather(*(tokens.get(TokenNeeded(build_method())) for _ in range(50)))
    assert got == [SecretStr("token-1")] * 50
    assert server.asked == 1


async def test_a_cancelled_caller_leaves_the_fetch_to_the_others(
    tokens: AccessTokens, server: AuthorizationServer
) -> None:
    server.gate.clear()
    callers = [asyncio.create_task(tokens.get(TokenNeeded(build_method()))) for _ in range(3)]
    await settle()
    callers[0].cancel()
    await settle()
    server.gate.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [SecretStr("token-1")] * 2
    assert server.asked == 1


async def test_a_rejected_token_is_fetched_anew(tokens: AccessTokens, server: AuthorizationServer) -> None:
    first = await tokens.get(TokenNeeded(build_method()))
    assert first == SecretStr("token-1")
    assert await tokens.get(TokenNeeded(build_method(), rejected=SecretStr("token-1"))) == SecretStr("token-2")
    assert await tokens.get(TokenNeeded(build_method())) == SecretStr("token-2")
    assert server.asked == 2


async def test_many_whose_token_was_rejected_share_one_fetch_even_one_after_another(
    tokens: AccessTokens, server: AuthorizationServer
) -> None:
    await tokens.get(TokenNeeded(build_method()))
    rejection = TokenNeeded(build_method(), rejected=SecretStr("token-1"))
    together = await asyncio.gather(*(tokens.get(rejection) for _ in range(20)))
    assert [*together, await tokens.get(rejection)] == [SecretStr("token-2")] * 21
    assert server.asked == 2


@pytest.mark.parametrize("failure", [Unreachable("No route."), Blocked("A private address."), Interrupted("Stop.")])
async def test_a_failure_is_told_as_what_it_was_and_not_kept(
    tokens: AccessTokens, server: AuthorizationServer, failure: Unreachable | Blocked | Interrupted
) -> None:
    server.outcome = failure
    results = await asyncio.gather(*(tokens.get(TokenNeeded(build_method())) for _ in range(3)))
    assert {type(result) for result in results} == {type(failure)}
    assert failure.reason in str(results[0])
    assert "authorization server" in str(results[0])
    assert server.asked == 1
    server.outcome = None
    assert await tokens.get(TokenNeeded(build_method())) == SecretStr("token-2")


async def test_a_refusal_is_a_failure_with_a_plain_reason(tokens: AccessTokens, server: AuthorizationServer) -> None:
    server.outcome = Responded(401, {}, b'{"error": "invalid_client"}')
    refused = await tokens.get(TokenNeeded(build_method()))
    assert isinstance(refused, Unreachable)
    assert refused.reason.startswith("the authorization server answered 401 invalid_client")


async def test_a_failed_renewal_does_not_forget_the_token_that_others_may_still_use(
    tokens: AccessTokens, server: AuthorizationServer
) -> None:
    await tokens.get(TokenNeeded(build_method()))
    server.outcome = Unreachable("No route.")
    assert isinstance(await tokens.get(TokenNeeded(build_method(), rejected=SecretStr("token-1"))), Unreachable)
    assert await tokens.get(TokenNeeded(build_method())) == SecretStr("token-1")


async def test_changed_credentials_never_use_an_old_token(tokens: AccessTokens, server: AuthorizationServer) -> None:
    got = [
        await tokens.get(TokenNeeded(method))
        for method in (build_method(), build_method(client_secret="new"), build_method(scope="other"), build_method())
    ]
    assert [token.get_secret_value() for token in got if isinstance(token, SecretStr)] == [
        "token-1",
        "token-2",
        "token-3",
        "token-1",
    ]


async def test_only_so_many_tokens_are_kept_and_the_longest_unused_goes(
    server: AuthorizationServer, clock: Clock
) -> None:
    tokens = AccessTokens(server, clock, capacity=2)
    for client_id in ("a", "b", "a", "c"):
        await tokens.get(TokenNeeded(build_method(client_id)))
    assert server.asked == 3
    await tokens.get(TokenNeeded(build_method("a")))
    assert server.asked == 3
    await tokens.get(TokenNeeded(build_method("b")))
    assert server.asked == 4


async def test_a_bug_in_the_sender_reaches_those_who_wait_and_is_not_kept(clock: Clock) -> None:
    class BrokenOnce(AuthorizationServer):
        async def send(self, request: Request) -> Outcome:
            if self.asked == 0:
                self.asked += 1
                raise RuntimeError("bug")
            return await super().send(request)

    tokens = AccessTokens(BrokenOnce(), clock)
    results = await asyncio.gather(*(tokens.get(TokenNeeded(build_method())) for _ in range(2)), return_exceptions=True)
    assert [str(result) for result in results] == ["bug", "bug"]
    assert await tokens.get(TokenNeeded(build_method())) == SecretStr("token-2")
