"""A run on a server touches what it made and nothing else."""

from __future__ import annotations

from contextlib import AsyncExitStack

import asyncpg
import pytest
from pydantic import SecretStr

from carehook.cli.bench.processes import BenchmarkFailed
from carehook.cli.bench.stores import DatabaseServer
from carehook.cli.bench.usage import find_family
from tests.servers.clients import connect_to_postgres, execute
from tests.servers.contents import list_databases
from tests.servers.ports import find_free_port
from tests.servers.postgres import PostgresServer


async def test_a_database_is_made_and_dropped_with_all_that_is_connected_to_it(postgres_server: PostgresServer) -> None:
    before = await list_databases(postgres_server)

    async with AsyncExitStack() as opened:
        async with DatabaseServer(SecretStr(postgres_server.url())).make_database() as url:
            connection = await opened.enter_async_context(connect_to_postgres(url.get_secret_value()))
            (made,) = await list_databases(postgres_server) - before
            assert made.startswith("carehook_bench_")
            assert await connection.fetchval("SELECT current_database()") == made
            assert await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0

        assert await list_databases(postgres_server) == before
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError)):
            await connection.fetchval("SELECT 1")


async def test_a_database_that_took_the_name_is_left_alone(postgres_server: PostgresServer) -> None:
    before = await list_databases(postgres_server)

    making = DatabaseServer(SecretStr(postgres_server.plain_url())).make_database()
    await making.__aenter__()
    (made,) = await list_databases(postgres_server) - before
    await execute(postgres_server.plain_url(), f'DROP DATABASE "{made}"')
    await execute(postgres_server.plain_url(), f'CREATE DATABASE "{made}"')

    with pytest.raises(BenchmarkFailed, match="no longer the one that this run made"):
        await making.__aexit__(None, None, None)

    assert await list_databases(postgres_server) == {*before, made}
    postgres_server.drop_database(made)


async def test_a_failure_leaves_no_database_behind(postgres_server: PostgresServer) -> None:
    before = await list_databases(postgres_server)

    with pytest.raises(ZeroDivisionError):
        async with DatabaseServer(SecretStr(postgres_server.plain_url())).make_database():
            raise ZeroDivisionError

    assert await list_databases(postgres_server) == before


async def test_it_is_told_how_durable_the_server_is(postgres_server: PostgresServer) -> None:
    described = await DatabaseServer(SecretStr(postgres_server.plain_url())).describe()

    assert described.startswith("PostgreSQL 1")
    assert "fsync=off, synchronous_commit=on, full_page_writes=off, shared_buffers=" in described


async def test_the_process_of_a_server_on_this_machine_is_found(postgres_server: PostgresServer) -> None:
    async with connect_to_postgres(postgres_server.plain_url()) as connection:
        backend = await connection.fetchval("SELECT pg_backend_pid()")

        found = await DatabaseServer(SecretStr(postgres_server.plain_url())).find_process()

        assert found is not None
        assert backend in find_family(found)


async def test_a_server_that_is_away_is_said_without_its_password() -> None:
    url = f"postgresql://user:very-secret@127.0.0.1:{find_free_port()}/postgres"

    with pytest.raises(BenchmarkFailed, match="cannot be used") as failed:
        await DatabaseServer(SecretStr(url)).describe()

    assert "very-secret" not in str(failed.value)


@pytest.mark.parametrize("url", ["sqlite:///other.db", "no url at all", "mysql://user@host/name"])
def test_another_store_than_postgresql_is_refused(url: str) -> None:
    with pytest.raises(BenchmarkFailed, match="--database-url"):
        DatabaseServer(SecretStr(url))
