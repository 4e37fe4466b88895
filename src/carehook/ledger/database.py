"""Connections. One engine reads and one writes; on SQLite there is one writer, which takes its lock before it reads.

SQLite runs in WAL mode with `synchronous=FULL`: a commit that returned survives a power cut, unless it was asked not
to wait for the disk. No error tells the
parameters of its statement, for bodies are among them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from carehook.ledger import sqlite_driver
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
    except sa.exc.ArgumentError:
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
            return url.set(drivername="postgresql+asyncpg")
    raise ValueError(f"the database URL begins with {backend}:; use sqlite: or postgresql:")


class Database:
    """The engines of one store. Opens nothing until it is first used."""

    def __init__(self, url: URL, *, pool_size: int = 8) -> None:
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            self._reader = _create_sqlite_engine(url, pool_size=pool_size, read_only=True)
            self._writer = _create_sqlite_engine(url, pool_size=1, read_only=False)
        else:
            self._writer = create_async_engine(url, pool_size=pool_size, pool_pre_ping=True, hide_parameters=True)
            self._reader = self._writer.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._hasty_writer = self._writer.execution_options(carehook_durable=False)

    @asynccontextmanager
    async def write(self, *, durable: bool = True) -> AsyncIterator[AsyncConnection]:
        """A transaction that may write: committed when the block ends, rolled back when it raises.

        Where it need not be `durable`, a power cut may undo it, but nothing that was committed before it or after.
        Raises LedgerUnavailable where the store does not answer; what the block raises passes.
        """
        engine = self._writer if durable else self._hasty_writer
        async with self._connect(engine) as connection, connection.begin():
            yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that reads, and sees one state of the store throughout. Raises as `write` does."""
        async with self._connect(self._reader) as connection:
            yield connection

    @asynccontextmanager
    async def _connect(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        try:
            connection = await engine.connect()
        except (sa.exc.SQLAlchemyError, asyncpg.PostgresError, OSError) as error:
            raise self._explain(error) from error
        try:
            yield connection
        except sa.exc.DBAPIError as error:
            if isinstance(error, sa.exc.OperationalError) or error.connection_invalidated:
                raise self._explain(error) from error
            raise
        finally:
            # Shielded: a connection whose transaction was cancelled goes back to the pool all the same.
            await asyncio.shield(connection.close())

    def _explain(self, error: Exception) -> LedgerUnavailable:
        """One sentence about a store that does not answer, without its password."""
        cause = " ".join(str(getattr(error, "orig", None) or error).split())
        return LedgerUnavailable(
            f"the database {self.url.render_as_string(hide_password=True)} does not answer: {cause}"
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._reader.dispose()
        if self._writer is not self._reader:
            await self._writer.dispose()


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
        for pragma in (*_PRAGMAS, f"PRAGMA query_only = {int(read_only)}"):
            cursor.execute(pragma)
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        if read_only:
            driver.begin_with_next("BEGIN")
            return
        durable = connection.get_execution_options().get("carehook_durable", True)
        driver.begin_with_next(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}", "BEGIN IMMEDIATE")

    return engine
