"""Connections. One engine reads and one writes; on SQLite there is one writer, which takes its lock before it reads.

SQLite runs in WAL mode with `synchronous=FULL`: a commit that returned survives a power cut.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from carehook.ledger import sqlite_driver

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
            self._reader = _create_sqlite_engine(url, begin="BEGIN", pool_size=pool_size)
            self._writer = _create_sqlite_engine(url, begin="BEGIN IMMEDIATE", pool_size=1)
        else:
            self._reader = self._writer = create_async_engine(url, pool_size=pool_size, pool_pre_ping=True)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that may write: committed when the block ends, rolled back when it raises."""
        async with self._writer.begin() as connection:
            yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that reads."""
        async with self._reader.connect() as connection:
            yield connection

    async def close(self) -> None:
        """Close every connection."""
        await self._reader.dispose()
        if self._writer is not self._reader:
            await self._writer.dispose()


def _create_sqlite_engine(url: URL, *, begin: str, pool_size: int) -> AsyncEngine:
    engine = create_async_engine(
        url,
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
        for pragma in _PRAGMAS:
            cursor.execute(pragma)
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def take_lock(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
