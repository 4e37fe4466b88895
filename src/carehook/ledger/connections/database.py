"""Connections. One engine reads and one writes; on SQLite there is one writer, which takes its lock before it reads.

SQLite runs in WAL mode with `synchronous=FULL`: a commit that returned survives a power cut, unless it was asked not
to wait for the disk. No error tells the parameters of its statement, for bodies are among them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from carehook.ledger.connections import sqlite_driver
from carehook.ledger.connections.pooled import BE_PATIENT, Deadline, create_engine
from carehook.ledger.connections.postgresql import (
    DRIVER_ERRORS,
    OTHER_SCHEMA,
    STATEMENT_TIMEOUT,
    Connections,
    check_options,
    is_unusable,
)
from carehook.ledger.connections.sessions import Session, SessionSqlalchemy, SqliteWriter, end
from carehook.ledger.connections.tls import TLS_OPTIONS, describe_tls_error
from carehook.ledger.port import LedgerUnavailable

BUSY_TIMEOUT_SECONDS = 30
"""How long a statement waits for another process's write on SQLite before it fails."""

_PRAGMAS = (
    f"PRAGMA busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000}",
    # Three bodies a page instead of one and a half; kept from the first write on, ignored afterwards.
    "PRAGMA page_size = 8192",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA wal_autocheckpoint = 2000",
    "PRAGMA cache_size = -8000",
    "PRAGMA foreign_keys = ON",
    "PRAGMA temp_store = MEMORY",
)


def parse_database_url(text: str) -> URL:
    """The URL with its asynchronous driver named: aiosqlite for `sqlite:`, asyncpg for `postgresql:` or `postgres:`.

    Raises ValueError, with a sentence for people, for anything else.
    """
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        raise ValueError(
            "the database URL cannot be read; it looks like postgresql://user:password@host/name"
        ) from None
    backend = url.drivername.partition("+")[0]
    match backend:
        case "sqlite":
            if not url.database or url.database == ":memory:":
                raise ValueError(
                    "a SQLite database must be a file, or events would be lost: sqlite:///path/to/carehook.db"
                )
            return url.set(drivername="sqlite+aiosqlite")
        case "postgresql" | "postgres":
            check_options(url)
            return url.set(drivername="postgresql+asyncpg")
    raise ValueError(f"the database URL begins with {backend}:; use sqlite: or postgresql:")


WRITE_TIMEOUT: Final = 60.0
"""Seconds that a transaction on PostgreSQL may take, unless it says otherwise: some move a hundred thousand rows."""

Result = TypeVar("Result")


class Database:
    """The engines of one store. Opens nothing until it is first used."""

    def __init__(self, url: URL, *, pool_size: int = 8) -> None:
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self._session_writer: SqliteWriter | None = None
        self._connections: Connections | None = None
        self._is_closed = False
        if self.is_sqlite:
            self._reader = _create_sqlite_engine(url, pool_size=pool_size, read_only=True)
            self._writer = _create_sqlite_engine(url, pool_size=1, read_only=False)
            self._session_writer = SqliteWriter(partial(_open_sqlite, url), self._writer.dialect)
            # SQLite lets one write at a time. Its own waiting is by polls; this is by turns.
            self._turn: AbstractAsyncContextManager[Any] = asyncio.Lock()
        else:
            self._turn = nullcontext()
            self._writer = create_engine(url, pool_size)
            self._reader = self._writer.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            self._connections = Connections(url, self._writer.dialect, self.explain)

    @property
    def connections(self) -> Connections:
        """Connections straight to PostgreSQL's driver."""
        if self._connections is None:
            raise TypeError("a SQLite database has no connections to PostgreSQL")
        return self._connections

    @asynccontextmanager
    async def write(self, *, seconds: float | None = WRITE_TIMEOUT) -> AsyncIterator[AsyncConnection]:
        """A transaction that may write: committed when the block ends, rolled back when it raises.

        Raises LedgerUnavailable where the store does not answer, or on PostgreSQL where it takes longer than `seconds`,
        which are without end for None; what the block raises passes.
        """
        async with self._turn, self._connect(self._writer, seconds) as connection, connection.begin():
            if seconds is None and not self.is_sqlite:
                await connection.execute(BE_PATIENT)
            yield connection

    async def run(self, work: Callable[[Session], Result], *, durable: bool = True) -> Result:
        """What `work` returns of a transaction of its own, once that is committed. Raises as `write` does.

        Where it need not be `durable`, a power cut may undo it, but nothing that was committed before it or after.
        """
        if self._session_writer is None:
            async with self.write(seconds=STATEMENT_TIMEOUT) as connection:
                return await connection.run_sync(lambda synchronous: work(SessionSqlalchemy(synchronous)))
        try:
            async with self._turn:
                return await self._session_writer.run(work, durable=durable)
        except sqlite3.OperationalError as error:
            raise self.explain(error) from error

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that reads, and sees one state of the store throughout. Raises as `write` does."""
        async with self._connect(self._reader, STATEMENT_TIMEOUT) as connection:
            yield connection

    @asynccontextmanager
    async def _connect(self, engine: AsyncEngine, seconds: float | None) -> AsyncIterator[AsyncConnection]:
        try:
            connection = await engine.connect()
        except (sa.exc.SQLAlchemyError, *DRIVER_ERRORS) as error:
            raise self.explain(error) from error
        deadline: Deadline | None = None
        try:
            # SQLite waits for no other machine.
            if seconds is not None and not self.is_sqlite:
                deadline = await Deadline.set(connection, seconds)
            yield connection
        except sa.exc.DBAPIError as error:
            if deadline is not None and deadline.is_over:
                raise self.explain(TimeoutError()) from error
            if _is_the_stores_fault(error):
                raise self.explain(error) from error
            raise
        finally:
            # A connection whose transaction was cancelled goes back to the pool all the same.
            await end(self._give_back(connection, deadline))

    async def _give_back(self, connection: AsyncConnection, deadline: Deadline | None) -> None:
        try:
            if self._is_closed:
                # Its pool is gone, and nobody would close it.
                await connection.invalidate()
            await connection.close()
        except (sa.exc.SQLAlchemyError, *DRIVER_ERRORS):
            # It was lost, and nothing with it: what was read is read, and what was to be committed is.
            with contextlib.suppress(sa.exc.SQLAlchemyError, *DRIVER_ERRORS):
                await connection.invalidate()
        finally:
            if deadline is not None:
                deadline.call_off()

    def explain(self, error: Exception) -> LedgerUnavailable:
        """One sentence, for the operator, about a store that does not answer; without its password."""
        url = self.url.set(drivername=self.url.get_backend_name()).difference_update_query(TLS_OPTIONS)
        where = f"the database {url.render_as_string(hide_password=True)}"
        if _is_of_another_schema(error):
            rule = "has another version's schema"
            return LedgerUnavailable(f"{where} {rule}: {_find_words(error)}", rule=rule)
        return LedgerUnavailable(f"{where} {describe_error(error)}")

    async def close(self) -> None:
        """Close every connection; those in use, when they are given back."""
        self._is_closed = True
        await end(self._close())

    async def _close(self) -> None:
        if self._session_writer is not None:
            await self._session_writer.close()
        if self._connections is not None:
            await self._connections.close()
        await self._reader.dispose()
        if self._writer is not self._reader:
            await self._writer.dispose()


_NOT_LET_IN: Final = frozenset({"28000", "28P01", "3D000"})
"""PostgreSQL's errors about the user, the password and the name of the database."""


def describe_error(error: Exception) -> str:
    """What a store does instead of answering: "does not answer: connection refused"."""
    cause, words = getattr(error, "orig", None) or error, _find_words(error)
    if about_tls := describe_tls_error(cause):
        return about_tls
    if getattr(cause, "sqlstate", None) in _NOT_LET_IN:
        return f"refuses: {words}"
    if isinstance(cause, OSError) and cause.errno:
        # Of a name that is unknown the number is negative; of the rest Python's text repeats the address.
        words = (os.strerror(cause.errno) if cause.errno > 0 else cause.strerror or words).lower()
    return f"does not answer: {words or 'it took too long'}"


def _find_words(error: Exception) -> str:
    """What the driver says, on one line."""
    return " ".join(str(getattr(error, "orig", None) or error).partition("\nHINT:")[0].split())


def _is_of_another_schema(error: Exception) -> bool:
    """Whether a statement met a schema that it is not made for."""
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, sqlite3.OperationalError):
        # SQLite has one code for all that is wrong with a statement.
        return any(words in str(cause) for words in ("no such table", "no such column", "has no column named"))
    return getattr(cause, "sqlstate", None) in OTHER_SCHEMA


def _is_the_stores_fault(error: sa.exc.DBAPIError) -> bool:
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(error, sa.exc.InternalError) and not state:
        # The driver's own word for a connection that broke in the middle of its conversation.
        return True
    return isinstance(error, sa.exc.OperationalError) or error.connection_invalidated or is_unusable(state)


def _open_sqlite(url: URL) -> sqlite3.Connection:
    connection = sqlite3.connect(str(url.database), timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)
    for pragma in _PRAGMAS:
        connection.execute(pragma)
    return connection


def _create_sqlite_engine(url: URL, *, pool_size: int, read_only: bool) -> AsyncEngine:
    engine = create_async_engine(
        url,
        hide_parameters=True,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=BUSY_TIMEOUT_SECONDS,
        connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "async_creator_fn": sqlite_driver.connect},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        # Without this the driver begins transactions by itself, too late and deferred.
        connection.isolation_level = None
        cursor = connection.cursor()
        try:
            for pragma in (*_PRAGMAS, f"PRAGMA query_only = {int(read_only)}"):
                cursor.execute(pragma)
        except BaseException:
            # SQLAlchemy does not know of it yet, so nobody else would.
            connection.close()
            raise
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        driver.begin_with_next("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine
