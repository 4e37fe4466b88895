"""Tokens, and the facts that tie a store to its settings."""

from __future__ import annotations

import dataclasses
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from carehook.ledger.records import Page, PageRequest, Role, Token
from carehook.ledger.sql.statements import fetch_page, insert
from carehook.ledger.sql.tables import installation, tokens

_token_columns = [tokens.c[field.name] for field in dataclasses.fields(Token)]


def _build_token(row: sa.Row[tuple[object, ...]]) -> Token:
    fields = dict(row._mapping)
    fields["role"] = Role(fields["role"])
    return Token(**fields)


class TokensSql:
    """See `port.Tokens`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, token: Token, digest: str) -> None:
        """Store a new token."""
        await self._connection.execute(tokens.insert(), {**dataclasses.asdict(token), "digest": digest})

    async def find(self, digest: str) -> Token | None:
        """The token whose secret has this digest."""
        query = sa.select(*_token_columns).where(tokens.c.digest == digest)
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else _build_token(row)

    async def page(self, request: PageRequest) -> Page[Token]:
        """A page of tokens."""
        return await fetch_page(self._connection, sa.select(*_token_columns), tokens.c.id, request, _build_token)

    async def revoke(self, token_id: str, now: datetime) -> bool:
        """Revoke a token."""
        statement = tokens.update().where(tokens.c.id == token_id, tokens.c.revoked_at.is_(None))
        return (await self._connection.execute(statement.values(revoked_at=now))).rowcount == 1

    async def any_operator(self) -> bool:
        """Whether there is an operator's token that is not revoked."""
        query = sa.select(tokens.c.id).where(tokens.c.role == Role.OPERATOR, tokens.c.revoked_at.is_(None))
        return (await self._connection.execute(query.limit(1))).first() is not None


class InstallationSql:
    """See `port.Installation`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def get(self, name: str) -> bytes | None:
        """A stored fact."""
        query = sa.select(installation.c.value).where(installation.c.name == name)
        return (await self._connection.execute(query)).scalar_one_or_none()

    async def put_first(self, name: str, value: bytes) -> bytes:
        """Store a fact unless there is one; the one that is stored now."""
        await self._connection.execute(
            insert(self._connection, installation).on_conflict_do_nothing(), {"name": name, "value": value}
        )
        # Another transaction's may have come first while this one waited for it.
        stored = await self.get(name)
        return value if stored is None else stored
