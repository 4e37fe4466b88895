"""A fresh store for each test, on each of the databases."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from carehook.ledger.connections.database import Database, parse_database_url
from carehook.ledger.sql.schema import migrate
from tests.conformance.jetstream import Cluster, name_installation
from tests.conformance.store import Store
from tests.servers.nats import NatsServers
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


@pytest.fixture(params=["sqlite", "postgresql", "jetstream"])
def kind(request: pytest.FixtureRequest) -> str:
    """A kind of queue. JetStream's is around PostgreSQL's."""
    chosen: str = request.param
    return chosen


@pytest.fixture
def database_url(kind: str, request: pytest.FixtureRequest) -> str:
    """A fresh, migrated database for each kind."""
    url: str = request.getfixturevalue("sqlite_url" if kind == "sqlite" else "postgresql_url")
    return url


@pytest.fixture
def open_store(
    kind: str, database_url: str, request: pytest.FixtureRequest
) -> Callable[[contextlib.AsyncExitStack], Awaitable[Store]]:
    """Opens a ledger and its queue, of each kind."""
    if kind != "jetstream":
        return lambda opened: Store.open(database_url, opened)
    server: NatsServers = request.getfixturevalue("nats_server")
    return lambda opened: Cluster(database_url, server.url, name_installation(), opened).join()


@pytest.fixture
async def store(open_store: Callable[[contextlib.AsyncExitStack], Awaitable[Store]]) -> AsyncIterator[Store]:
    """A ledger and its queue, of each kind."""
    async with contextlib.AsyncExitStack() as opened:
        yield await open_store(opened)


@pytest.fixture(params=["sqlite", "postgresql"])
def sql_url(request: pytest.FixtureRequest) -> str:
    """A fresh, migrated database of each kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
async def sql_store(sql_url: str) -> AsyncIterator[Store]:
    """The same without JetStream, by which processes hear more than these tests tell them."""
    async with contextlib.AsyncExitStack() as opened:
        yield await Store.open(sql_url, opened)


@pytest.fixture
async def postgresql_store(postgresql_url: str) -> AsyncIterator[Store]:
    """The same on PostgreSQL alone, for what SQLite's single writer rules out."""
    async with contextlib.AsyncExitStack() as opened:
        yield await Store.open(postgresql_url, opened)


@pytest.fixture
async def cluster(postgresql_url: str, nats_server: NatsServers) -> AsyncIterator[Cluster]:
    """A database and a NATS server for any number of processes."""
    async with contextlib.AsyncExitStack() as opened:
        yield Cluster(postgresql_url, nats_server.url, name_installation(), opened)
