"""A store that cannot be used says why in one plain sentence, and never its password."""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from carehook.ledger.connections.database import Database, parse_database_url
from carehook.ledger.port import LedgerUnavailable
from carehook.ledger.sql.ledger import LedgerSql
from carehook.ledger.sql.schema import migrate
from tests.conformance.store import Store
from tests.servers.ports import find_free_port
from tests.servers.postgres import PostgresServer


@contextlib.asynccontextmanager
async def open_store(url: str) -> AsyncIterator[Store]:
    async with contextlib.AsyncExitStack() as opened:
        yield await Store.open(url, opened)


async def set_version(store: Store, version: str) -> None:
    async with store.database.write() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = :version"), {"version": version})


async def refuse(url: str) -> str:
    """What is said of a store that cannot be used."""
    async with open_store(url) as store:
        with pytest.raises(LedgerUnavailable) as raised:
            await store.ledger.check()
    return str(raised.value)


async def test_a_migrated_store_is_available(store: Store) -> None:
    await store.ledger.check()
    async with store.ledger.snapshot() as tx:
        assert not await tx.tokens.any_operator()


async def test_a_store_that_is_too_old_asks_for_a_migration(store: Store) -> None:
    await set_version(store, "0000")
    with pytest.raises(LedgerUnavailable, match=r"is at schema 0000, this version needs \d+: run `carehook migrate`"):
        await store.ledger.check()


async def test_a_store_that_is_too_new_asks_for_a_newer_version(store: Store) -> None:
    await set_version(store, "9999")
    with pytest.raises(LedgerUnavailable, match=r"is at schema 9999, newer than .*: run a newer Carehook"):
        await store.ledger.check()


async def test_a_store_that_is_too_new_is_not_migrated(store: Store) -> None:
    await set_version(store, "9999")
    with pytest.raises(LedgerUnavailable, match="run a newer Carehook"):
        await migrate(store.database)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE deliveries RENAME TO parcels",
        "ALTER TABLE deliveries RENAME COLUMN attempt_count TO attempts",
        "ALTER TABLE lanes RENAME TO tracks",
    ],
)
async def test_a_schema_that_changes_under_a_running_process_is_a_store_that_cannot_be_used(
    store: Store, change: str
) -> None:
    await store.add_endpoints("ep_1", max_in_flight=5)
    (delivery_id,) = await store.accept("ep_1")
    async with store.database.write() as connection:
        await connection.execute(sa.text(change))
    with pytest.raises(LedgerUnavailable, match="has another version's schema: ") as refusal:
        await store.claim()
    assert refusal.value.public == "The store has another version's schema."
    with pytest.raises(LedgerUnavailable):
        await _read_all(store, delivery_id)


async def _read_all(store: Store, delivery_id: str) -> None:
    async with store.ledger.snapshot() as tx:
        await tx.deliveries.get(delivery_id)
        await tx.deliveries.backlog()


async def test_an_empty_file_has_no_tables(tmp_path: Path) -> None:
    said = await refuse(f"sqlite:///{tmp_path / 'empty.db'}")
    assert said == "the database has no tables yet: run `carehook migrate`"


async def test_an_empty_database_has_no_tables(postgres_server: PostgresServer, postgres_database: str) -> None:
    said = await refuse(postgres_server.url(postgres_database))
    assert said == "the database has no tables yet: run `carehook migrate`"


async def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    said = await refuse(f"sqlite:///{tmp_path}/missing/carehook.db")
    assert said.endswith("missing/carehook.db does not answer: unable to open database file")


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    file = tmp_path / "carehook.db"
    file.write_text("Dear diary, " * 1000)
    assert (await refuse(f"sqlite:///{file}")).endswith("does not answer: file is not a database")


async def test_a_server_that_is_not_there() -> None:
    port = find_free_port()
    said = await refuse(f"postgresql://carehook:hunter2@127.0.0.1:{port}/carehook")
    address = f"postgresql://carehook:***@127.0.0.1:{port}/carehook"
    assert said == f"the database {address} does not answer: connection refused"


async def test_a_wrong_password(postgres_server: PostgresServer) -> None:
    url = parse_database_url(postgres_server.url()).set(password="hunter2")
    said = await refuse(url.render_as_string(hide_password=False))
    assert "password authentication failed" in said
    assert "hunter2" not in said


async def test_a_database_that_is_not_there(postgres_server: PostgresServer) -> None:
    assert 'database "missing" does not exist' in await refuse(postgres_server.url("missing"))


async def test_a_server_that_goes_away_and_comes_back() -> None:
    with PostgresServer() as server:
        database = Database(parse_database_url(server.url()))
        await migrate(database)
        ledger = LedgerSql(database, lambda _: None)

        async def ask_before_and_after_the_end() -> None:
            async with ledger.transaction() as tx:
                assert not await tx.tokens.any_operator()
                server.stop()
                await tx.tokens.any_operator()

        with pytest.raises(LedgerUnavailable, match="does not answer"):
            await ask_before_and_after_the_end()
        with pytest.raises(LedgerUnavailable, match="does not answer"):
            async with ledger.snapshot():
                pass
        server.start()
        async with ledger.transaction() as tx:
            assert not await tx.tokens.any_operator()
        await ledger.close()


@pytest.mark.parametrize("end", [PostgresServer.stop, PostgresServer.kill])
async def test_a_server_that_goes_away_at_the_commit(end: Callable[[PostgresServer], None]) -> None:
    with PostgresServer() as server:
        async with open_store(server.url()) as store:
            await migrate(store.database)

            async def commit_after_the_end() -> None:
                async with store.ledger.transaction() as tx:
                    assert not await tx.tokens.any_operator()
                    end(server)

            with pytest.raises(LedgerUnavailable, match="does not answer"):
                await commit_after_the_end()


async def test_a_backend_that_an_operator_ends(postgres_server: PostgresServer, postgres_database: str) -> None:
    database = Database(parse_database_url(postgres_server.url(postgres_database)))
    with pytest.raises(LedgerUnavailable, match="terminating connection"):
        async with database.write() as connection:
            await connection.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))
    await database.close()


async def raise_in_postgres(database: Database, state: str) -> None:
    """Let the server end a statement with an error of a SQLSTATE."""
    async with database.write() as connection:
        await connection.execute(sa.text(f"DO $$ BEGIN RAISE 'no room' USING ERRCODE = '{state}'; END $$"))


@pytest.mark.parametrize("state", ["53100", "57014", "58030"])
async def test_a_server_without_room_or_in_trouble_is_unavailable(
    postgres_server: PostgresServer, postgres_database: str, state: str
) -> None:
    database = Database(parse_database_url(postgres_server.url(postgres_database)))
    with pytest.raises(LedgerUnavailable, match="no room"):
        await raise_in_postgres(database, state)
    await database.close()


async def test_a_wrong_statement_is_not_the_stores_fault(
    postgres_server: PostgresServer, postgres_database: str
) -> None:
    database = Database(parse_database_url(postgres_server.url(postgres_database)))
    with pytest.raises(sa.exc.DBAPIError):
        await raise_in_postgres(database, "22000")
    await database.close()


async def test_what_a_block_raises_passes_as_it_is(store: Store) -> None:
    with pytest.raises(TimeoutError, match="the caller's"):
        async with store.ledger.transaction():
            raise TimeoutError("the caller's")


async def test_a_server_that_takes_no_writes_is_a_store_that_is_away(postgresql_store: Store) -> None:
    """As after a failover, where the primary of before is a standby."""
    await postgresql_store.add_endpoints("ep_1")
    await postgresql_store.publish("ep_1")
    async with postgresql_store.database.write() as connection:
        name = (await connection.execute(sa.text("SELECT current_database()"))).scalar_one()
        await connection.execute(sa.text(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'))
    demoted = await postgresql_store.second()
    with pytest.raises(LedgerUnavailable):
        await demoted.claim()
    with pytest.raises(LedgerUnavailable):
        await demoted.publish("ep_1")
