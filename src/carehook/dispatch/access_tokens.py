"""Access tokens are kept until they expire, and fetched once for however many deliveries wait for the same one.

They live in memory alone, under a digest of the credentials they were got with: changed credentials never use
an old token. A failure is told to those who waited for it and then forgotten.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Final, TypeAlias

from pydantic import SecretStr

from carehook.directory.authentication import AccessToken, TokenNeeded, TokenRefused, TokenSource
from carehook.exchange import Blocked, Interrupted, Responded, Unreachable

if TYPE_CHECKING:
    from carehook.dispatch.sender import Sender

CAPACITY: Final = 4096
"""How many tokens are kept; beyond it, the one unused for longest goes."""

TokenFailure: TypeAlias = Unreachable | Blocked | Interrupted


class AccessTokens:
    """The access tokens of one process.

    Tokens are asked for through `sender`, so the address rules and time limits of deliveries hold for
    authorization servers too. So does the response limit: an answer over 4 KiB arrives cut off and is a
    failure, which a server that issues very large JWTs can run into. `clock` gives seconds; a monotonic one
    will do.
    """

    def __init__(self, sender: Sender, clock: Callable[[], float], capacity: int = CAPACITY) -> None:
        self._sender = sender
        self._clock = clock
        self._capacity = capacity
        self._kept: OrderedDict[bytes, AccessToken] = OrderedDict()
        self._fetches: dict[bytes, asyncio.Task[SecretStr | TokenFailure]] = {}

    async def get(self, needed: TokenNeeded) -> SecretStr | TokenFailure:
        """A token for `needed`, another one than it rejects, or why there is none.

        A caller that is cancelled leaves the fetch to the others who wait for it.
        """
        fingerprint = needed.source.compute_fingerprint()
        kept = self._find(fingerprint)
        # One that differs from the rejected token was fetched by a neighbour whose delivery got the 401 first.
        if kept is not None and kept != needed.rejected:
            return kept
        fetch = self._fetches.get(fingerprint)
        if fetch is None:
            fetch = asyncio.create_task(self._fetch(fingerprint, needed.source), context=Context())
            self._fetches[fingerprint] = fetch
        return await asyncio.shield(fetch)

    def _find(self, fingerprint: bytes) -> SecretStr | None:
        token = self._kept.get(fingerprint)
        if token is None or token.expires_at <= self._clock():
            return None
        self._kept.move_to_end(fingerprint)
        return token.value

    async def _fetch(self, fingerprint: bytes, source: TokenSource) -> SecretStr | TokenFailure:
        try:
            asked_at = self._clock()
            outcome = await self._sender.send(source.build_token_request())
            if not isinstance(outcome, Responded):
                return _name_the_server(outcome)
            token = source.read_token(outcome, asked_at)
            if isinstance(token, TokenRefused):
                return Unreachable(token.reason)
            self._keep(fingerprint, token)
            return token.value
        finally:
            del self._fetches[fingerprint]

    def _keep(self, fingerprint: bytes, token: AccessToken) -> None:
        self._kept[fingerprint] = token
        self._kept.move_to_end(fingerprint)
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)


def _name_the_server(failure: TokenFailure) -> TokenFailure:
    """The same failure, its reason saying that it was not the endpoint who failed."""
    return type(failure)(f"no access token from the authorization server: {failure.reason}")
