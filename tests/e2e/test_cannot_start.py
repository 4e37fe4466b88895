"""What keeps each command that runs from starting: one plain sentence, exit code 3, and nothing begun."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from alembic import command as alembic_command
from alembic.config import Config
from sqlalchemy.engine import Connection

import carehook.ledger.sql.migrations as migrations
from carehook.ledger.connections.database import Database, parse_database_url
from carehook.ledger.sql.schema import HEAD
from tests.servers.clients import execute
from tests.servers.installation import Installation
from tests.servers.ports import find_free_port
from tests.servers.postgres import PostgresServer

COMMANDS = [("api",), ("worker",), ("worker", "--processes", "2"), ("serve",)]
each_command = pytest.mark.parametrize("command", COMMANDS, ids=" ".join)


@pytest.fixture
def carehook(tmp_path: Path) -> Installation:
    return Installation(tmp_path, CAREHOOK_WORKER_PORT="0")


def check_refused(carehook: Installation, command: tuple[str, ...], database_url: str, sentence: str) -> None:
    """The command ends with code 3 and says exactly this, once; it has announced nothing."""
    done = carehook.run(*command, code=3, CAREHOOK_DATABASE_URL=database_url)
    assert done.stderr == f"Carehook cannot start: {sentence}\n"
    assert done.stdout == ""


@each_command
@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("the postgres server", "the database URL cannot be read; it looks like postgresql://user:password@host/name."),
        ("mysql://carehook:hunter2@host/care", "the database URL begins with mysql:; use sqlite: or postgresql:."),
        ("sqlite://", "a SQLite database must be a file, or events would be lost: sqlite:///path/to/carehook.db."),
    ],
)
def test_a_wrong_url(carehook: Installation, command: tuple[str, ...], url: str, rule: str) -> None:
    check_refused(carehook, command, url, f"CAREHOOK_DATABASE_URL: {rule}")


@each_command
def test_a_server_that_is_down(carehook: Installation, command: tuple[str, ...]) -> None:
    address = f"127.0.0.1:{find_free_port()}/care"
    sentence = f"the database postgresql://carehook:***@{address} does not answer: connection refused."
    check_refused(carehook, command, f"postgresql://carehook:hunter2@{address}", sentence)


@each_command
def test_a_server_that_nobody_knows(carehook: Installation, command: tuple[str, ...]) -> None:
    address = "postgres.invalid/care"
    done = carehook.run(*command, code=3, CAREHOOK_DATABASE_URL=f"postgresql://carehook:hunter2@{address}")
    # The rest is the resolver's: it tells a name that is not there from a name server that is away.
    begin = f"Carehook cannot start: the database postgresql://carehook:***@{address} does not answer: "
    (line,) = done.stderr.splitlines()
    assert line.startswith(begin)
    assert "errno" not in line.lower()


@each_command
def test_a_wrong_password(carehook: Installation, command: tuple[str, ...], postgres_server: PostgresServer) -> None:
    url = parse_database_url(postgres_server.plain_url()).set(drivername="postgresql", password="hunter2")
    sentence = f'the database {url} refuses: password authentication failed for user "{url.username}".'
    check_refused(carehook, command, url.render_as_string(hide_password=False), sentence)


@each_command
def test_a_database_that_is_not_there(
    carehook: Installation, command: tuple[str, ...], postgres_server: PostgresServer
) -> None:
    url = parse_database_url(postgres_server.plain_url("missing")).set(drivername="postgresql")
    sentence = f'the database {url} refuses: database "missing" does not exist.'
    check_refused(carehook, command, url.render_as_string(hide_password=False), sentence)


# ---------------------------------------------------------------- another version's schema


def migrate_to(url: str, revision: str) -> None:
    """Bring an empty store to the schema of an older version."""

    def upgrade(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__path__[0])))
        config.attributes["connection"] = connection
        alembic_command.upgrade(config, revision)

    async def migrate() -> None:
        database = Database(parse_database_url(url))
        async with database.write() as connection:
            await connection.run_sync(upgrade)
        await database.close()

    asyncio.run(migrate())


@each_command
def test_a_schema_that_is_too_old_on_a_server(
    carehook: Installation, command: tuple[str, ...], postgres_server: PostgresServer, postgres_database: str
) -> None:
    url = postgres_server.plain_url(postgres_database)
    migrate_to(url, "0001")
    sentence = f"the database is at schema 0001, this version needs {HEAD}: run `carehook migrate`."
    check_refused(carehook, command, url, sentence)


def test_migrating_does_what_the_sentence_asks_for(
    carehook: Installation, postgres_server: PostgresServer, postgres_database: str
) -> None:
    url = postgres_server.plain_url(postgres_database)
    migrate_to(url, "0001")
    assert carehook.run("migrate", CAREHOOK_DATABASE_URL=url).stderr == "The store has this version's schema.\n"
    assert carehook.run("org", "list", CAREHOOK_DATABASE_URL=url).stderr == ""


@pytest.mark.parametrize("command", [("serve",), ("worker",)], ids=" ".join)
def test_a_schema_that_is_too_old_in_a_file_is_brought_up(carehook: Installation, command: tuple[str, ...]) -> None:
    carehook.home.mkdir(mode=0o700)
    migrate_to(f"sqlite:///{carehook.home / 'carehook.db'}", "0001")
    with carehook.start(*command) as started:
        started.wait_for_log("service_started" if started.url else "worker_started")
    assert carehook.run("org", "list").stderr == ""


TOO_NEW = f"the database is at schema 9999, newer than this version knows ({HEAD}): run a newer Carehook."


@pytest.fixture
def url_of_a_newer_schema(carehook: Installation, postgres_server: PostgresServer, postgres_database: str) -> str:
    url = postgres_server.plain_url(postgres_database)
    carehook.run("migrate", CAREHOOK_DATABASE_URL=url)
    asyncio.run(execute(url, "UPDATE alembic_version SET version_num = '9999'"))
    return url


@each_command
def test_a_schema_that_is_too_new(carehook: Installation, command: tuple[str, ...], url_of_a_newer_schema: str) -> None:
    check_refused(carehook, command, url_of_a_newer_schema, TOO_NEW)


def test_a_schema_that_is_too_new_is_not_migrated_either(carehook: Installation, url_of_a_newer_schema: str) -> None:
    done = carehook.run("migrate", code=3, CAREHOOK_DATABASE_URL=url_of_a_newer_schema)
    assert (done.stdout, done.stderr) == ("", f"Carehook cannot do this: {TOO_NEW}\n")
