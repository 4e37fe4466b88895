"""The migrations make the very schema that the tables describe, on each database, however many processes migrate."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.engine import Connection

from carehook.ledger.database import Database, parse_database_url
from carehook.ledger.schema import HEAD, migrate, read_version
from carehook.ledger.tables import metadata
from tests.conformance.store import Store
from tests.servers.postgres import PostgresServer

SQLITE_DEFINITIONS = "SELECT name, sql FROM sqlite_master WHERE name != 'alembic_version' AND sql IS NOT NULL"
POSTGRESQL_DEFINITIONS = """
    SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename != 'alembic_version'
    UNION ALL
    SELECT conrelid::regclass || '.' || conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text != 'alembic_version'
    UNION ALL
    SELECT table_name || '.' || column_name, concat_ws(' ', data_type, is_nullable, column_default)
    FROM information_schema.columns WHERE table_schema = 'public' AND table_name != 'alembic_version'
"""


async def read_definitions(database: Database) -> dict[str, str]:
    """Every table, column, constraint and index as the database itself puts it, by name, without line breaks."""
    query = SQLITE_DEFINITIONS if database.is_sqlite else POSTGRESQL_DEFINITIONS
    async with database.read() as connection:
        return {name: " ".join(text.split()) for name, text in await connection.execute(sa.text(query))}


def normalize(definition: str) -> list[str]:
    """The parts of a definition in any order: a migration may name constraints in another order than a table."""
    return sorted(part.strip(" ()") for part in definition.replace("(", ",").split(","))


@pytest.fixture
def empty_url(database_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """An empty database of the same kind."""
    if database_url.startswith("sqlite"):
        return f"sqlite:///{tmp_path / 'empty.db'}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.url(request.getfixturevalue("postgres_database"))


async def test_the_migrated_schema_is_that_of_the_tables(store: Store, empty_url: str) -> None:
    made = Database(parse_database_url(empty_url))
    async with made.write() as connection:
        await connection.run_sync(metadata.create_all)
    migrated, described = await read_definitions(store.database), await read_definitions(made)
    await made.close()
    assert migrated.keys() == described.keys()
    for name, definition in described.items():
        assert normalize(migrated[name]) == normalize(definition)


async def test_alembic_finds_nothing_to_migrate(store: Store) -> None:
    def compare(connection: Connection) -> Sequence[object]:
        options = {"compare_type": True, "compare_server_default": True}
        found: Sequence[object] = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
        return found

    async with store.database.read() as connection:
        assert await connection.run_sync(compare) == []


async def test_migrating_again_changes_nothing(store: Store) -> None:
    await store.add_organization()
    await migrate(store.database)
    assert await read_version(store.database) == HEAD
    async with store.ledger.snapshot() as tx:
        assert await tx.organizations.existing(["org_1"]) == {"org_1"}


async def test_several_processes_may_migrate_at_once(empty_url: str) -> None:
    program = f"""if True:
        import asyncio
        from carehook.ledger.database import Database, parse_database_url
        from carehook.ledger.schema import migrate

        async def main():
            database = Database(parse_database_url({empty_url!r}))
            print("ready", flush=True)
            input()
            await migrate(database)
            await database.close()

        asyncio.run(main())
    """
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-c", program)
    processes = [await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        await process.stdout.readline()
    results = await asyncio.gather(*(process.communicate(b"\n") for process in processes))
    assert [stderr.decode() for _, stderr in results] == [""] * 3
    assert [process.returncode for process in processes] == [0] * 3
    database = Database(parse_database_url(empty_url))
    assert await read_version(database) == HEAD
    await database.close()
