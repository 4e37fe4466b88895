"""The PostgreSQL that other tests rely on keeps what it was told, and goes when they do."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from tests.servers.clients import connect_to_postgres, execute
from tests.servers.postgres import PostgresServer

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


async def test_it_is_postgresql_18(postgres_server: PostgresServer) -> None:
    assert str(await execute(postgres_server.plain_url(), "SHOW server_version")).startswith("18.")


async def test_each_database_is_its_own(postgres_server: PostgresServer, postgres_database: str) -> None:
    other = postgres_server.create_database()
    await execute(postgres_server.plain_url(postgres_database), "CREATE TABLE deliveries ()", "SELECT 1")
    tables = "SELECT count(*) FROM pg_tables WHERE tablename = 'deliveries'"
    assert await execute(postgres_server.plain_url(postgres_database), tables) == 1
    assert await execute(postgres_server.plain_url(other), tables) == 0
    postgres_server.drop_database(other)
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await execute(postgres_server.plain_url(other), tables)


async def test_a_database_can_be_copied(postgres_server: PostgresServer, postgres_database: str) -> None:
    await execute(postgres_server.plain_url(postgres_database), "CREATE TABLE kept AS SELECT 7 AS n", "SELECT 1")
    copy = postgres_server.create_database(template=postgres_database)
    assert await execute(postgres_server.plain_url(copy), "SELECT n FROM kept") == 7
    postgres_server.drop_database(copy)


async def test_what_was_committed_survives_a_kill(own_server: PostgresServer) -> None:
    url = own_server.plain_url(own_server.create_database())
    await execute(url, "CREATE TABLE kept AS SELECT 7 AS n", "SELECT 1")
    own_server.kill()
    with pytest.raises(OSError, match=str(own_server.port)):
        await execute(url, "SELECT 1")
    own_server.restart()
    assert await execute(url, "SELECT n FROM kept") == 7


async def test_stopping_closes_connections(own_server: PostgresServer) -> None:
    async with connect_to_postgres(own_server.plain_url()) as connection:
        closed = asyncio.Event()
        connection.add_termination_listener(lambda _: closed.set())
        own_server.stop()
        await closed.wait()
    own_server.start()
    assert await execute(own_server.plain_url(), "SELECT 1") == 1


@pytest.mark.parametrize("last", ["pass", "server.freeze()"])
def test_nothing_is_left_of_tests_that_were_killed(last: str) -> None:
    program = f"""if True:
        from tests.servers.postgres import PostgresServer
        with PostgresServer() as server:
            {last}
            print(server._watchdog.pid, server._process.pid, server._directory, flush=True)
            input()
    """
    tests = subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert tests.stdout is not None
    watchdog, server, directory = tests.stdout.readline().split()
    watchdog_ended = os.pidfd_open(int(watchdog))
    server_ended = os.pidfd_open(int(server))
    tests.send_signal(signal.SIGKILL)
    tests.communicate()
    for ended in (server_ended, watchdog_ended):
        wait_until_readable(ended)
        os.close(ended)
    assert not Path(directory).exists()


def wait_until_readable(descriptor: int) -> None:
    """A process descriptor becomes readable when its process ends."""
    select.select([descriptor], [], [])
