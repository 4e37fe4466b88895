"""aiosqlite with one trip to the connection's thread for each statement.

As it comes it makes four: open a cursor, execute, fetch, close. A trip wakes two threads and takes longer than most
statements do, so a transaction of a few small statements would spend its time on the way.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterable
from typing import Any, Self

import aiosqlite


class OneTripCursor(aiosqlite.Cursor):
    """A cursor whose rows are all here as soon as it has executed, so that fetching and closing need no trip."""

    def __init__(self, connection: OneTripConnection) -> None:
        self._connection = connection
        self._rows: list[Any] = []

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> Self:
        """Execute a statement and fetch its rows."""
        self._cursor, self._rows = await self._connection.run("execute", sql, parameters or ())
        return self

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> Self:
        """Execute a statement once for each row of parameters."""
        self._cursor, self._rows = await self._connection.run("executemany", sql, parameters)
        return self

    async def fetchall(self) -> Iterable[sqlite3.Row]:
        """The rows of the last statement."""
        return self._rows

    async def close(self) -> None:
        """Nothing is left open that would have to be closed."""


class OneTripConnection(aiosqlite.Connection):
    """A connection that gives such cursors."""

    def cursor(self) -> OneTripCursor:  # type: ignore[override] # awaiting it would be a trip
        """A new cursor."""
        return OneTripCursor(self)

    async def run(self, method: str, *arguments: Any) -> tuple[sqlite3.Cursor, list[Any]]:
        """Call a method of the connection on its thread, and fetch what it found."""

        def call() -> tuple[sqlite3.Cursor, list[Any]]:
            cursor: sqlite3.Cursor = getattr(self._conn, method)(*arguments)
            return cursor, cursor.fetchall()

        found: tuple[sqlite3.Cursor, list[Any]] = await self._execute(call)  # type: ignore[no-untyped-call]
        return found


def connect(database: str, **options: Any) -> OneTripConnection:
    """A connection to open by awaiting it; the options are those of `sqlite3.connect`."""
    connection = OneTripConnection(functools.partial(sqlite3.connect, database, **options), iter_chunk_size=64)
    # A connection that nobody closed must not keep the process alive.
    connection._thread.daemon = True
    return connection
