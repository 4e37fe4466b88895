"""The ledger on PostgreSQL: as on SQLite, but for the way in which events are accepted."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime

from carehook.ledger.connections.database import Database
from carehook.ledger.postgresql.accept import AcceptPostgresql
from carehook.ledger.records import Additions, Known
from carehook.ledger.sql.ledger import LedgerSql, OnDue


class LedgerPostgresql(LedgerSql):
    """See `port.Ledger`."""

    def __init__(self, database: Database, on_due: OnDue) -> None:
        super().__init__(database, on_due)
        self._accept = AcceptPostgresql(database)

    async def accept(
        self,
        organization_ids: Collection[str],
        keys: Collection[tuple[str, str]],
        decide: Callable[[Known], Additions],
        now: datetime,
    ) -> None:
        """Add what `decide` says, in one statement."""
        if due := await self._accept.accept(organization_ids, keys, decide, now):
            self._on_due(due)
