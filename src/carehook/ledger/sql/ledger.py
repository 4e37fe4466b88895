"""The ledger on SQLite and PostgreSQL: a transaction gives access to every table through its part of the port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from carehook.ledger.connections.database import Database
from carehook.ledger.records import Additions, Known, Settled
from carehook.ledger.sql import settling
from carehook.ledger.sql.accept import accept
from carehook.ledger.sql.access import InstallationSql, TokensSql
from carehook.ledger.sql.care import CareSql
from carehook.ledger.sql.deliveries import DeliveriesSql
from carehook.ledger.sql.directory import EndpointsSql, OrganizationsSql
from carehook.ledger.sql.events import EventsSql, IdempotencyKeysSql
from carehook.ledger.sql.schema import check_schema


@dataclass(frozen=True, slots=True)
class TransactionSql:
    """See `port.Transaction`."""

    organizations: OrganizationsSql
    endpoints: EndpointsSql
    events: EventsSql
    deliveries: DeliveriesSql
    idempotency_keys: IdempotencyKeysSql
    care: CareSql
    tokens: TokensSql
    installation: InstallationSql


OnDue = Callable[[Collection[str]], None]
"""Told the endpoints that something was made due for, after the commit; none named means any."""


def _build_transaction(connection: AsyncConnection, on_due: OnDue) -> TransactionSql:
    return TransactionSql(
        organizations=OrganizationsSql(connection),
        endpoints=EndpointsSql(connection),
        events=EventsSql(connection),
        deliveries=DeliveriesSql(connection, on_due),
        idempotency_keys=IdempotencyKeysSql(connection),
        care=CareSql(connection),
        tokens=TokensSql(connection),
        installation=InstallationSql(connection),
    )


class LedgerSql:
    """See `port.Ledger`. `on_due` is called after a commit that made deliveries due, with their endpoints."""

    def __init__(self, database: Database, on_due: OnDue) -> None:
        self._database = database
        self._on_due = on_due

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[TransactionSql]:
        """Read and write."""
        made_due: set[str] = set()
        async with self._database.write() as connection:
            yield _build_transaction(connection, made_due.update)
        if made_due:
            self._on_due(made_due)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[TransactionSql]:
        """Read alone."""
        async with self._database.read() as connection:
            yield _build_transaction(connection, lambda _: None)

    async def accept(
        self,
        organization_ids: Collection[str],
        keys: Collection[tuple[str, str]],
        decide: Callable[[Known], Additions],
        now: datetime,
    ) -> None:
        """Add what `decide` says, in one transaction."""
        if due := await self._database.run(lambda session: accept(session, organization_ids, keys, decide, now)):
            self._on_due(due)

    async def settle(self, endpoint_id: str, now: datetime, *, waits: bool) -> Settled:
        """Let some of an endpoint's deliveries follow its status."""
        run = self._database.run
        part = await run(lambda session: settling.move_part(session, endpoint_id, now, waits=waits))
        if part is None:
            return Settled(0, is_complete=False)
        if part.is_active:
            self._on_due([endpoint_id])
        if part.is_full:
            return Settled(part.moved, is_complete=False)
        return Settled(part.moved, await run(lambda session: settling.conclude(session, endpoint_id, waits=waits)))

    async def unsettled(self) -> Sequence[str]:
        """The endpoints that have deliveries yet to follow their status, the longest waiting first."""
        async with self._database.read() as connection:
            return (await connection.execute(settling.UNSETTLED)).scalars().all()

    async def check(self) -> None:
        """Raises LedgerUnavailable where the store does not answer or its schema is not this version's."""
        await check_schema(self._database)

    async def close(self) -> None:
        """Close every connection."""
        await self._database.close()
