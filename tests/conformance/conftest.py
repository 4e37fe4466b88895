"""A fresh store for each test, on each of the databases."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from carehook.ledger.database import Database, parse_database_url
from carehook.ledger.schema import migrate
from tests.conformance.store import Store
from tests.servers.postgres import PostgresServer


async def _migrate(url: str) -> None:
    database = Database(parse_database_url(url))
    await migrate(database)
    await database.close()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy: quicker than to migrate for every test."""
    file = tmp_path_factory.mktemp("migrated") / "carehook.db"
    asyncio.run(_migrate(f"sqlite:///{file}"))
    return file


@pytest.fixture(scope="session")
def migrated_postgresql(postgres_server: PostgresServer) -> str:
    """A migrated PostgreSQL database to copy."""
    name = postgres_server.create_database()
    asyncio.run(_migrate(postgres_server.url(name)))
    return name


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    """A fresh, migrated SQLite database."""
    return f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'carehook.db')}"


@pytest.fixture
def postgresql_url(postgres_server: PostgresServer, migrated_postgresql: str) -> Iterator[str]:
    """A fresh, migrated PostgreSQL database."""
    name = postgres_server.create_database(template=migrated_postgresql)
    yield postgres_server.url(name)
    postgres_server.drop_database(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh, migrated database of each kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """A ledger and its queue on a fresh database of each kind."""
    async with contextlib.AsyncExitStack() as opened:
        yield await Store.open(database_url, opened)


@pytest.fixture
async def postgresql_store(postgresql_url: str) -> AsyncIterator[Store]:
    """The same on PostgreSQL alone, for what SQLite's single writer rules out."""
    async with contextlib.AsyncExitStack() as opened:
        yield await Store.open(postgresql_url, opened)
