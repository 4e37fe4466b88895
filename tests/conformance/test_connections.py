"""Connections to PostgreSQL are closed with the store, however that comes about."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from carehook.ledger.connections import database as database_module
from carehook.ledger.connections import pooled
from carehook.ledger.connections import postgresql as postgresql_module
from carehook.ledger.connections.database import Database, parse_database_url
from carehook.ledger.connections.sessions import end
from carehook.ledger.port import LedgerUnavailable
from carehook.ledger.sql.schema import read_version
from tests.servers.clients import execute
from tests.servers.postgres import PostgresServer

COUNT = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'carehook' AND datname = current_database()"


@pytest.fixture
def url(postgres_server: PostgresServer, postgres_database: str) -> str:
    return postgres_server.plain_url(postgres_database)


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = Database(parse_database_url(url))
    yield database
    await database.close()


async def open_some(database: Database) -> None:
    """Two connections each way, given back and idle."""
    async with database.read(), database.read():
        await asyncio.gather(*(database.connections.fetch("SELECT 1") for _ in range(2)))


async def until_none_is_open(url: str) -> None:
    """Return when the server knows of no connection any more; it takes a moment to see that one has ended."""
    async with asyncio.timeout(10):
        while await execute(url, COUNT):
            """Not yet."""


async def test_all_that_are_idle_are_closed(url: str, database: Database) -> None:
    await open_some(database)
    assert await execute(url, COUNT) == 4
    await database.close()
    await until_none_is_open(url)


async def test_one_that_is_in_use_is_closed_when_it_is_given_back(url: str, database: Database) -> None:
    async with database.read():
        await database.close()
        assert await execute(url, COUNT) == 1
    await until_none_is_open(url)


async def test_a_close_that_is_cancelled_closes_all_the_same(url: str, database: Database) -> None:
    await open_some(database)
    closing = asyncio.create_task(database.close())
    for _ in range(2):
        await asyncio.sleep(0)
        closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await until_none_is_open(url)


@pytest.mark.parametrize("way", ["by SQLAlchemy", "straight"])
async def test_a_server_that_takes_a_connection_and_says_nothing_is_away(
    monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    for module in (pooled, postgresql_module):
        monkeypatch.setattr(module, "CONNECT_TIMEOUT", 0.2)
    # The kernel takes the connection, and nobody reads what comes over it.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        database = Database(parse_database_url(f"postgresql://u:p@127.0.0.1:{silent.getsockname()[1]}/d"))
        asked = database.connections.fetch("SELECT 1") if way == "straight" else read_version(database)
        with pytest.raises(LedgerUnavailable, match="does not answer: it took too long"):
            await asyncio.wait_for(asked, 20)
        await database.close()


async def test_who_is_cancelled_again_and_again_waits_for_the_end() -> None:
    goes_on, is_over = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await goes_on.wait()
        is_over.set()

    waiting = asyncio.create_task(end(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert is_over.is_set()


async def test_who_is_not_cancelled_hears_what_went_wrong() -> None:
    async def work() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await end(work())


async def test_options_of_a_url_that_are_numbers_are_taken_as_such(url: str) -> None:
    options = "timeout=5&command_timeout=7.5&statement_cache_size=0&max_cached_statement_lifetime=60"
    database = Database(parse_database_url(f"{url}?{options}"))
    assert len(await database.connections.fetch("SELECT 1")) == 1
    assert await read_version(database) is None
    await database.close()


@contextmanager
def standing_still(server: PostgresServer) -> Iterator[None]:
    """Its processes are there and do nothing, as where its disk hangs; the kernel takes what is sent to them."""
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


@pytest.mark.parametrize("was_used", [True, False])
async def test_a_server_that_stands_still_is_away_and_its_connections_are_ended(
    monkeypatch: pytest.MonkeyPatch, was_used: bool
) -> None:
    for module in (pooled, postgresql_module):
        monkeypatch.setattr(module, "CONNECT_TIMEOUT", 0.3)
    monkeypatch.setattr(database_module, "STATEMENT_TIMEOUT", 0.3)
    with PostgresServer() as server:
        database = Database(parse_database_url(server.plain_url()))
        await read_version(database)
        if was_used:
            # Idle connections are tried out first, and this one has been.
            async with database.read() as connection:
                with standing_still(server), pytest.raises(sa.exc.DBAPIError):
                    await asyncio.wait_for(connection.execute(sa.text("SELECT 1")), 20)
        else:
            with standing_still(server), pytest.raises(LedgerUnavailable, match="does not answer: it took too long"):
                await asyncio.wait_for(read_version(database), 20)
        assert await read_version(database) is None
        await database.close()


async def test_a_transaction_that_takes_too_long_is_told_as_a_store_that_is_away(url: str, database: Database) -> None:
    with pytest.raises(LedgerUnavailable, match="does not answer: it took too long"):
        async with database.write(seconds=0.1) as connection:
            await connection.execute(sa.text("SELECT pg_sleep(20)"))
    async with database.write(seconds=None) as connection:
        assert (await connection.execute(sa.text("SELECT 1 FROM pg_sleep(0.2)"))).scalar_one() == 1
        idle = await connection.execute(sa.text("SHOW idle_in_transaction_session_timeout"))
        assert idle.scalar_one() == "10min"


async def test_what_was_read_is_read_though_its_connection_is_lost_before_it_is_given_back(
    url: str, database: Database
) -> None:
    for _ in range(20):
        async with database.read() as connection:
            pid = (await connection.execute(sa.text("SELECT pg_backend_pid()"))).scalar_one()
            await execute(url, f"SELECT pg_terminate_backend({pid}, 5000)")
    # None of them is in use still.
    async with database.read(), asyncio.timeout(20):
        assert await read_version(database) is None


async def test_a_server_that_stands_still_before_a_connection_is_given_back_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(database_module, "STATEMENT_TIMEOUT", 0.3)
    with PostgresServer() as server:
        database = Database(parse_database_url(server.plain_url()))
        async with asyncio.timeout(20):
            with contextlib.ExitStack() as stack:
                async with database.read() as connection:
                    await connection.execute(sa.text("SELECT 1"))
                    stack.enter_context(standing_still(server))
            assert await read_version(database) is None
        await database.close()
