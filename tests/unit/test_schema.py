"""Which database a URL means, and which migration is the newest."""

from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

import carehook.ledger.sql.migrations
from carehook.ledger.connections.database import parse_database_url
from carehook.ledger.sql.schema import HEAD


def test_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(carehook.ledger.sql.migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("sqlite:///carehook.db", "sqlite+aiosqlite"),
        ("sqlite+pysqlite:////var/lib/carehook.db", "sqlite+aiosqlite"),
        ("postgresql://user:password@host/name", "postgresql+asyncpg"),
        ("postgres://user:password@host/name", "postgresql+asyncpg"),
        ("postgresql+psycopg://host/name", "postgresql+asyncpg"),
    ],
)
def test_a_url_gets_its_asynchronous_driver(text: str, driver: str) -> None:
    assert parse_database_url(text).drivername == driver


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("carehook.db", "looks like postgresql://"),
        ("mysql://host/name", "begins with mysql:"),
        ("sqlite://", "must be a file"),
        ("sqlite:///:memory:", "must be a file"),
    ],
)
def test_a_url_that_cannot_be_used_says_what_to_write(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_database_url(text)


def test_a_url_that_cannot_be_read_does_not_tell_its_password() -> None:
    with pytest.raises(ValueError, match="cannot be read") as raised:
        parse_database_url("//user:hunter2@host")
    assert "hunter2" not in str(raised.value)
    assert raised.value.__suppress_context__
