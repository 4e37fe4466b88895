"""An authentication method is a generator of requests: it says what to send, and never sends it.

A flow yields a `Request` and gets the receiver's `Responded` back, or yields a `TokenNeeded` and gets an
access token, and ends when it is satisfied; the last response is the outcome. Whoever drives it owns the
network, the clock and the cache, and stops driving when a request was not answered at all. So every method
can be replayed without a network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from pydantic import BaseModel, ConfigDict, SecretStr

from carehook.exchange import Request, Responded


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A token and the instant, in seconds of the caller's clock, from which it is used no more."""

    value: SecretStr
    expires_at: float


@dataclass(frozen=True, slots=True)
class TokenRefused:
    """The authorization server gave no usable token. `reason` is a plain sentence without a secret."""

    reason: str


class TokenSource(Protocol):
    """How to get an access token: what to ask, and how to read the answer. Both are pure."""

    def build_token_request(self) -> Request:
        """The request that asks the authorization server for a token."""
        ...

    def read_token(self, response: Responded, now: float) -> AccessToken | TokenRefused:
        """The token in the authorization server's answer. `now` is when it was asked, in seconds of any clock."""
        ...

    def compute_fingerprint(self) -> bytes:
        """A digest of all that a token depends on, secrets too: equal only where a token may be shared."""
        ...


@dataclass(frozen=True, slots=True)
class TokenNeeded:
    """A flow cannot go on without a token. `rejected` is one that the receiver has just answered with 401."""

    source: TokenSource
    rejected: SecretStr | None = None


Step: TypeAlias = Request | TokenNeeded
Answer: TypeAlias = Responded | SecretStr
AuthenticationFlow: TypeAlias = Generator[Step, Answer, None]


class AuthenticationMethod(BaseModel, ABC):
    """What every method has in common. Its secrets are masked when it is shown, dumped or printed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    @abstractmethod
    def authenticate(self, request: Request) -> AuthenticationFlow:
        """The steps that send `request`, authenticated."""

    @property
    def contacted_urls(self) -> tuple[tuple[str, str], ...]:
        """URLs that the flow asks besides the endpoint's own, each after the name of the field that it stands in.

        The address rules hold for them as well.
        """
        return ()


def ask_receiver(request: Request) -> Generator[Step, Answer, Responded]:
    """Part of a flow: send `request`, and go on with the receiver's response."""
    answer = yield request
    if not isinstance(answer, Responded):
        raise TypeError("A request in an authentication flow is answered with a response.")
    return answer


def ask_token(source: TokenSource, rejected: SecretStr | None = None) -> Generator[Step, Answer, SecretStr]:
    """Part of a flow: get an access token of `source`, another one than `rejected`."""
    answer = yield TokenNeeded(source, rejected)
    if not isinstance(answer, SecretStr):
        raise TypeError("A TokenNeeded in an authentication flow is answered with an access token.")
    return answer
