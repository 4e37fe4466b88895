"""Sessions: one transaction as plain calls, for the operations that run thousands of times a second.

Such an operation is a function of a session, `work(session)`, and does not await. On SQLite all of it runs on the
writer's own thread, in one trip there and back; on PostgreSQL it runs where the event loop is, and each statement is
awaited beneath it. Either way it is the same function with the same statements.
"""

from __future__ import annotations

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Dialect

Result = TypeVar("Result")
Row = tuple[Any, ...]

INTEGRITY_ERRORS: Final = (sqlite3.IntegrityError, sa.exc.IntegrityError)
"""What a session raises where a row breaks a constraint of its table."""


async def end(begun: Awaitable[Result]) -> Result:
    """What `begun` gives. A caller that is cancelled, however often, is told so only when it has ended."""
    task = asyncio.ensure_future(begun)
    is_cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            is_cancelled = True
    if is_cancelled:
        # How it ended is told to nobody.
        if not task.cancelled():
            task.exception()
        raise asyncio.CancelledError
    return task.result()


class Session(ABC):
    """A transaction that has begun."""

    dialect: Dialect

    @abstractmethod
    def fetch(self, text: str, parameters: Sequence[Any]) -> Sequence[Row]:
        """Execute a statement and give back its rows, as the driver has them."""

    @abstractmethod
    def execute_many(self, text: str, rows: Sequence[Sequence[Any]]) -> None:
        """Execute a statement once for each row of parameters."""


class SessionSqlalchemy(Session):
    """A session within SQLAlchemy's `run_sync`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.dialect = connection.dialect

    def fetch(self, text: str, parameters: Sequence[Any]) -> Sequence[Row]:
        """See `Session`."""
        result = self._connection.exec_driver_sql(text, tuple(parameters))
        return [tuple(row) for row in result] if result.returns_rows else []

    def execute_many(self, text: str, rows: Sequence[Sequence[Any]]) -> None:
        """See `Session`."""
        self._connection.exec_driver_sql(text, [tuple(row) for row in rows])


class SessionSqlite(Session):
    """A session on a connection of Python's own driver."""

    def __init__(self, connection: sqlite3.Connection, dialect: Dialect) -> None:
        self._connection = connection
        self.dialect = dialect

    def fetch(self, text: str, parameters: Sequence[Any]) -> Sequence[Row]:
        """See `Session`."""
        return self._connection.execute(text, parameters).fetchall()

    def execute_many(self, text: str, rows: Sequence[Sequence[Any]]) -> None:
        """See `Session`."""
        self._connection.executemany(text, rows)


class SqliteWriter:
    """A connection to a SQLite database, with a thread of its own, that runs one transaction after another."""

    def __init__(self, open_connection: Callable[[], sqlite3.Connection], dialect: Dialect) -> None:
        self._open_connection = open_connection
        self._dialect = dialect
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="carehook-sqlite-writer")

    async def run(self, work: Callable[[Session], Result], *, durable: bool) -> Result:
        """What `work` returns, once it is committed. Raises what it raised, once all of it is rolled back.

        A caller that is cancelled is told so only when the transaction has ended.
        """
        loop = asyncio.get_running_loop()
        return await end(loop.run_in_executor(self._thread, self._transact, work, durable))

    async def close(self) -> None:
        """Close the connection and end its thread."""
        if self._connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
            self._connection = None
        self._thread.shutdown(wait=False)

    def _transact(self, work: Callable[[Session], Result], durable: bool) -> Result:
        if self._connection is None:
            self._connection = self._open_connection()
        connection = self._connection
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(SessionSqlite(connection, self._dialect))
            connection.commit()
        except BaseException:
            connection.rollback()
            raise
        return result
