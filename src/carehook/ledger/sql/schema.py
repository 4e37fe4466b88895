"""The schema's version: checked against the code's, and brought up to it by Alembic's migrations.

The check is one small query without Alembic, whose import is slow; `HEAD` is held to the migrations by a test.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TextIO

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from carehook.ledger.connections.database import Database
from carehook.ledger.connections.sessions import end
from carehook.ledger.port import LedgerUnavailable

HEAD = "0006"
"""The newest migration, the schema that this code works with."""

_TOO_OLD = "does not have this version's schema: run `carehook migrate`"
_TOO_NEW = "has a newer version's schema: run a newer Carehook"

_MIGRATION_LOCK = 0x63617265686F6F6B
"""The PostgreSQL advisory lock that lets one process migrate at a time ("carehook" in ASCII)."""


async def read_version(database: Database) -> str | None:
    """The schema's version; None for a store without a schema. Raises LedgerUnavailable where it does not answer."""
    query = sa.text("SELECT version_num FROM alembic_version")
    async with database.read() as connection:
        if not await connection.run_sync(lambda sync: sa.inspect(sync).has_table("alembic_version")):
            return None
        version: str | None = (await connection.execute(query)).scalar_one_or_none()
        return version


async def check_schema(database: Database) -> None:
    """Raises LedgerUnavailable where the schema is missing, too old or too new."""
    version = await read_version(database)
    if version is None:
        raise LedgerUnavailable("the database has no tables yet: run `carehook migrate`", rule=_TOO_OLD)
    if version < HEAD:
        raise LedgerUnavailable(
            f"the database is at schema {version}, this version needs {HEAD}: run `carehook migrate`", rule=_TOO_OLD
        )
    if version > HEAD:
        raise LedgerUnavailable(
            f"the database is at schema {version}, newer than this version knows ({HEAD}): run a newer Carehook",
            rule=_TOO_NEW,
        )


async def migrate(database: Database) -> None:
    """Bring the schema up to HEAD, making it on an empty store. Several processes may do so at once."""
    async with _take_turn(database):
        await _migrate(database)


@asynccontextmanager
async def _take_turn(database: Database) -> AsyncIterator[None]:
    """Let one process at a time open a SQLite store for the first time; PostgreSQL has a lock of its own for that.

    While one turns a new file into a WAL database, another that opens it would be told that it is locked.
    """
    if not database.is_sqlite:
        yield
        return
    with contextlib.closing(_open_lock(f"{database.url.database}.lock")) as lock:
        await end(asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX))
        yield


def _open_lock(path: str) -> TextIO:
    return os.fdopen(os.open(path, os.O_CREAT | os.O_RDWR, 0o600), "w")


async def _migrate(database: Database) -> None:
    version = await read_version(database)
    if version == HEAD:
        return
    if version is not None and version > HEAD:
        await check_schema(database)
    async with database.write(seconds=None) as connection:
        await connection.run_sync(_upgrade)


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
