"""Where a run keeps its data: a database of its own on a server, dropped at the end, or a folder.

The law of this module: a database that this run did not make is not touched. A new one is made under a random name,
which fails where there is one, and is marked; it is dropped only while it bears this very mark. A stream has the name
of the run's own encryption key.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
import nats
import nats.errors
from nats.js.errors import NotFoundError
from pydantic import SecretStr
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from carehook.cli.bench.processes import BenchmarkFailed
from carehook.cli.bench.usage import find_parent

_PREFIX: Final = "carehook_bench_"
_THIS_MACHINE: Final = ("127.0.0.1", "::1", "localhost")
_TOLD: Final = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers")


class DatabaseServer:
    """A PostgreSQL server on which the run makes databases of its own."""

    def __init__(self, url: SecretStr) -> None:
        self._url = _parse(url)

    async def describe(self) -> str:
        """Its version and what its durability and speed depend on: "PostgreSQL 18.0, fsync=on, …"."""
        connection = await self._connect()
        try:
            version = await connection.fetchval("SHOW server_version")
            settings = [f"{name}={await connection.fetchval(f'SHOW {name}')}" for name in _TOLD]
        finally:
            await connection.close()
        return ", ".join([f"PostgreSQL {version.split()[0]}", *settings])

    async def find_process(self) -> int | None:
        """The server's first process, where it runs on this machine: the parent of who serves our connection."""
        if self._url.host not in _THIS_MACHINE:
            return None
        connection = await self._connect()
        try:
            return find_parent(await connection.fetchval("SELECT pg_backend_pid()"), "postgres")
        finally:
            await connection.close()

    @asynccontextmanager
    async def make_database(self) -> AsyncIterator[SecretStr]:
        """The URL of a new, empty database, which is dropped when the block ends."""
        name, mark = _PREFIX + secrets.token_hex(8), f"made by carehook bench {secrets.token_hex(8)}"
        await self._execute(f'CREATE DATABASE "{name}"')
        await self._execute(f"COMMENT ON DATABASE \"{name}\" IS '{mark}'")
        try:
            yield SecretStr(self._url.set(database=name).render_as_string(hide_password=False))
        finally:
            await self._drop(name, mark)

    async def settle(self, database: SecretStr) -> None:
        """Leave a database as one is that has run for a while: statistics taken, what was written on disk."""
        connection = await self._connect(make_url(database.get_secret_value()))
        try:
            await connection.execute("VACUUM (ANALYZE)")
            await connection.execute("CHECKPOINT")
        finally:
            await connection.close()

    async def _drop(self, name: str, mark: str) -> None:
        connection = await self._connect()
        try:
            found = await connection.fetchval(
                "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1", name
            )
            if found != mark:
                raise BenchmarkFailed(f"The database {name} is no longer the one that this run made; it is left alone.")
            await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        finally:
            await connection.close()

    async def _execute(self, statement: str) -> None:
        connection = await self._connect()
        try:
            await connection.execute(statement)
        except asyncpg.PostgresError as error:
            raise BenchmarkFailed(f"The PostgreSQL server refuses a database for the benchmark: {error}.") from None
        finally:
            await connection.close()

    async def _connect(self, url: URL | None = None) -> asyncpg.Connection[asyncpg.Record]:
        try:
            return await asyncpg.connect((url or self._url).render_as_string(hide_password=False))
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise BenchmarkFailed(f"The PostgreSQL server cannot be used: {type(error).__name__}: {error}.") from None


async def delete_stream(queue: SecretStr, installation: str) -> None:
    """Delete the stream of an installation, which has the name of its encryption key; that key is this run's own.

    Where the server has gone, nothing is done: what went wrong before says so better.
    """
    options: dict[str, Any] = {"max_reconnect_attempts": 1, "reconnect_time_wait": 0, "error_cb": _ignore}
    with contextlib.suppress(OSError, TimeoutError, nats.errors.Error, NotFoundError):
        connection = await nats.connect(queue.get_secret_value().split(","), **options)
        try:
            await connection.jetstream().delete_stream(f"carehook-{installation}")
        finally:
            await connection.close()


async def _ignore(_: Exception) -> None:
    """The client's own way is a traceback."""


def _parse(url: SecretStr) -> URL:
    try:
        parsed = make_url(url.get_secret_value())
    except ArgumentError:
        raise BenchmarkFailed("--database-url is not a URL; write postgresql://user:password@host/name.") from None
    if parsed.get_backend_name() != "postgresql":
        raise BenchmarkFailed("--database-url must be postgresql://…; the embedded store is always measured.")
    return parsed.set(drivername="postgresql")
