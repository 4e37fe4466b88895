"""API tokens: made once, shown once, stored as digests, and bound to what they may do.

A token's secret has 256 random bits, so a plain SHA-256 digest of it is safe to store (there is nothing to guess).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from pydantic import SecretStr

from carehook.clock import Clock
from carehook.ids import TOKEN, new_id
from carehook.ledger.port import Ledger
from carehook.ledger.records import Role, Token
from carehook.refusals import build_invalid, build_not_found

PREFIX: Final = "carehook_"
"""How every token begins, so that scanners for leaked secrets can find one."""

REMEMBERED_SECONDS: Final = 2.0
"""For how long a token found is taken as good without asking the store: a revocation takes this long at most."""

_REMEMBERED_AT_MOST: Final = 10_000


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token with its secret, which is nowhere else."""

    token: Token
    secret: SecretStr


class Tokens:
    """Makes, finds and revokes tokens."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._remembered: dict[str, tuple[float, Token]] = {}

    async def create(self, role: Role, organization_id: str | None = None) -> NewToken:
        """Make a token. A publisher's is bound to an organization, an operator's to none.

        Raises a `Refusal` where that is not so, or there is no such organization.
        """
        _check_binding(role, organization_id)
        secret = PREFIX + secrets.token_urlsafe(32)
        token = Token(new_id(TOKEN), role, organization_id, self._clock(), None)
        async with self._ledger.transaction() as transaction:
            if organization_id is not None and not await transaction.organizations.existing([organization_id]):
                raise build_not_found("organization", organization_id)
            await transaction.tokens.add(token, _digest(secret))
        return NewToken(token, SecretStr(secret))

    async def create_first_operator(self) -> NewToken | None:
        """Make an operator's token where there is none; None where there is one."""
        async with self._ledger.snapshot() as snapshot:
            if await snapshot.tokens.any_operator():
                return None
        return await self.create(Role.OPERATOR)

    async def find(self, secret: str) -> Token | None:
        """The token with this secret, if there is one and it is not revoked. `secret` may be any text."""
        if not secret.startswith(PREFIX):
            return None
        digest = _digest(secret)
        now = self._clock().timestamp()
        remembered = self._remembered.get(digest)
        # Not before either: a clock that was set back must not prolong what is remembered.
        if remembered is not None and 0 <= now - remembered[0] < REMEMBERED_SECONDS:
            return remembered[1]
        self._remembered.pop(digest, None)
        async with self._ledger.snapshot() as snapshot:
            token = await snapshot.tokens.find(digest)
        if token is None or token.revoked_at is not None:
            return None
        if len(self._remembered) >= _REMEMBERED_AT_MOST:
            self._remembered.clear()
        self._remembered[digest] = (now, token)
        return token

    async def revoke(self, token_id: str) -> None:
        """End a token. Raises `NotFound` where there is none of that id that is not revoked."""
        async with self._ledger.transaction() as transaction:
            if not await transaction.tokens.revoke(token_id, self._clock()):
                raise build_not_found("token that is in use", token_id)
        self._remembered.clear()


def _check_binding(role: Role, organization_id: str | None) -> None:
    if role is Role.PUBLISHER and organization_id is None:
        raise build_invalid("organization_id", "is required: a publisher's token is bound to an organization")
    if role is Role.OPERATOR and organization_id is not None:
        raise build_invalid("organization_id", "must be left out: an operator's token is good for all organizations")


def _digest(secret: str) -> str:
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
