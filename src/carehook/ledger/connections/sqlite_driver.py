"""aiosqlite with one trip to the connection's thread for each statement, and none for what surrounds them.

As it comes it makes four: open a cursor, execute, fetch, close; and others to begin a transaction and to roll back what
was never written. A trip wakes two threads and takes longer than most statements do, so a transaction of a few small
statements would spend its time on the way.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterable
from typing import Any, Self

import aiosqlite
from aiosqlite.core import _STOP_RUNNING_SENTINEL


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
    """A connection that gives such cursors, and begins a transaction on the trip of its first statement."""

    _begin: str | None = None
    _trips = 0

    def cursor(self) -> OneTripCursor:  # type: ignore[override] # awaiting it would be a trip
        """A new cursor."""
        return OneTripCursor(self)

    def begin_with_next(self, statement: str) -> None:
        """Begin a transaction with `statement`, just before the next one is executed."""
        self._begin = statement

    async def run(self, method: str, *arguments: Any) -> tuple[sqlite3.Cursor, list[Any]]:
        """Call a method of the connection on its thread, and fetch what it found."""
        begin, self._begin = self._begin, None

        def call() -> tuple[sqlite3.Cursor, list[Any]]:
            try:
                if begin is not None:
                    self._conn.execute(begin)
                cursor: sqlite3.Cursor = getattr(self._conn, method)(*arguments)
                return cursor, cursor.fetchall()
            finally:
                self._trips -= 1

        self._trips += 1
        found: tuple[sqlite3.Cursor, list[Any]] = await self._execute(call)  # type: ignore[no-untyped-call]
        return found

    async def commit(self) -> None:
        """Make what was written last; a trip, for it waits for the disk."""
        if self._begin is None:
            await super().commit()
        self._begin = None

    async def rollback(self) -> None:
        """Undo what was written. It does not touch the disk, so it needs no trip unless one is still under way."""
        self._begin = None
        if self._trips:
            await super().rollback()
        elif self._conn.in_transaction:
            self._conn.rollback()

    def stop(self) -> None:
        """End the thread once its queue is empty, and tell nobody: by then the event loop may be closed."""
        self._running = False

        def close_and_stop() -> object:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            return _STOP_RUNNING_SENTINEL

        self._tx.put_nowait((None, close_and_stop))


def connect(database: str, **options: Any) -> OneTripConnection:
    """A connection to open by awaiting it; the options are those of `sqlite3.connect`."""
    # Two threads use it, but never at once.
    opening = functools.partial(sqlite3.connect, database, **{**options, "check_same_thread": False})
    connection = OneTripConnection(opening, iter_chunk_size=64)
    # A connection that nobody closed must not keep the process alive.
    connection._thread.daemon = True
    return connection
