"""Carehook starts on a store that fits it, or says in one plain sentence, without a secret, why it does not."""

from __future__ import annotations

import asyncio
import base64
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from carehook.bootstrap import StartupError, migrate_store, open_carehook
from carehook.config import Settings
from carehook.insights import EndpointView
from carehook.keyring import KEY_FILE, InvalidKeyError, KeyringError, WrongKeyError
from carehook.ledger.port import LedgerUnavailable
from carehook.ledger.records import PageRequest
from tests.servers.clients import execute
from tests.servers.ports import find_free_port
from tests.servers.postgres import PostgresServer
from tests.stores import ALL, build_settings, create_organization, register

KEY = base64.b64encode(bytes(range(32))).decode()


async def use(settings: Settings, **options: Any) -> None:
    async with open_carehook(settings, **options) as carehook:
        await carehook.ledger.check()


async def register_endpoint(settings: Settings, **options: Any) -> str:
    async with open_carehook(settings, **options) as carehook:
        registered = await register(carehook, await create_organization(carehook), signature_value="agreed")
        return registered.endpoint.id


def count_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def read_endpoint(settings: Settings) -> EndpointView:
    async with open_carehook(settings) as carehook:
        (organization,) = (await carehook.insights.organizations(ALL)).data
        (endpoint,) = (await carehook.insights.endpoints(organization.id, ALL)).data
        return endpoint


# ------------------------------------------------------------------------------------ the embedded store


@pytest.mark.parametrize("name", ["home", "a/b/c", "what? 100% #1 ñ"])
async def test_the_embedded_store_is_made_where_it_is_said_and_found_again(tmp_path: Path, name: str) -> None:
    settings = build_settings(tmp_path / name)
    endpoint_id = await register_endpoint(settings)
    assert {path.name for path in settings.home.iterdir()} >= {"carehook.db", KEY_FILE}
    assert stat.S_IMODE(settings.home.stat().st_mode) == 0o700
    endpoint = await read_endpoint(settings)
    assert (endpoint.id, endpoint.authentication is not None) == (endpoint_id, True)


async def test_a_relative_home_lies_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    await use(Settings())
    assert (tmp_path / "carehook-data" / "carehook.db").exists()


async def test_a_database_file_elsewhere_is_private_too(tmp_path: Path) -> None:
    await use(build_settings(tmp_path / "home", f"sqlite:///{tmp_path / 'events.db'}"))
    assert stat.S_IMODE((tmp_path / "events.db").stat().st_mode) == 0o600


async def test_a_home_that_cannot_be_made_or_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for home in (tmp_path / "file", tmp_path / "file" / "home", Path("/proc/carehook"), Path("/proc")):
        with pytest.raises(StartupError, match=rf"^CAREHOOK_HOME: .*{home}.*\.$"):
            await use(build_settings(home))


async def test_a_database_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"events\.db cannot be opened: No such file or directory"):
        await use(build_settings(tmp_path / "home", f"sqlite:///{tmp_path}/none/events.db"))


async def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    settings = build_settings(tmp_path)
    await use(settings)
    for name in ("carehook.db-wal", "carehook.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "carehook.db").write_bytes(b"no database " * 1000)
    with pytest.raises(LedgerUnavailable, match="file is not a database"):
        await use(settings)


# ------------------------------------------------------------------------------------ the key


async def test_the_key_may_come_from_the_environment_and_then_no_file_is_made(tmp_path: Path) -> None:
    settings = build_settings(tmp_path).model_copy(update={"encryption_key": SecretStr(KEY)})
    endpoint_id = await register_endpoint(settings)
    assert not (tmp_path / KEY_FILE).exists()
    assert (await read_endpoint(settings)).id == endpoint_id


async def test_carehook_does_not_start_with_another_key(tmp_path: Path) -> None:
    settings = build_settings(tmp_path)
    await register_endpoint(settings)
    with pytest.raises(WrongKeyError, match="Start Carehook with the key that the store was made with") as raised:
        await use(settings.model_copy(update={"encryption_key": SecretStr(KEY)}))
    assert KEY not in str(raised.value)
    shutil.move(tmp_path / KEY_FILE, tmp_path / "elsewhere")
    with pytest.raises(WrongKeyError):
        await use(settings)
    shutil.move(tmp_path / "elsewhere", tmp_path / KEY_FILE)
    await use(settings)


@pytest.mark.parametrize("key", ["short", "x" * 44, base64.b64encode(b"s" * 31).decode(), "päss"])
async def test_a_key_that_is_none_is_not_shown(tmp_path: Path, key: str) -> None:
    with pytest.raises(InvalidKeyError, match="CAREHOOK_ENCRYPTION_KEY must be the base64 of 32") as raised:
        await use(build_settings(tmp_path).model_copy(update={"encryption_key": SecretStr(key)}))
    assert key not in str(raised.value)
    assert not (tmp_path / "carehook.db").exists()


async def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    settings = build_settings(tmp_path)
    await use(settings)
    (tmp_path / KEY_FILE).chmod(0o640)
    with pytest.raises(KeyringError, match="chmod 600"):
        await use(settings)


async def test_a_key_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).mkdir()
    with pytest.raises(StartupError, match=r"the encryption key in .* cannot be read or made"):
        await use(build_settings(tmp_path))


# ------------------------------------------------------------------------------------ PostgreSQL


@pytest.fixture
def on_postgres(postgres_server: PostgresServer, postgres_database: str, tmp_path: Path) -> Settings:
    return build_settings(tmp_path, postgres_server.plain_url(postgres_database))


async def test_an_empty_database_is_made_where_that_is_asked_and_else_left(on_postgres: Settings) -> None:
    with pytest.raises(LedgerUnavailable, match="run `carehook migrate`"):
        await use(on_postgres)
    endpoint_id = await register_endpoint(on_postgres, create=True)
    assert (await read_endpoint(on_postgres)).id == endpoint_id
    await use(on_postgres, create=True)


async def test_a_database_is_made_by_migrating(on_postgres: Settings) -> None:
    await migrate_store(on_postgres)
    await migrate_store(on_postgres)
    endpoint_id = await register_endpoint(on_postgres)
    assert (await read_endpoint(on_postgres)).id == endpoint_id


async def test_processes_that_start_at_once_make_one_store(on_postgres: Settings, tmp_path: Path) -> None:
    for settings in (on_postgres, build_settings(tmp_path / "embedded")):
        await asyncio.gather(*(register_endpoint(settings, create=True) for _ in range(5)))
        async with open_carehook(settings) as carehook:
            assert len((await carehook.insights.organizations(PageRequest())).data) == 5


@pytest.mark.parametrize(("version", "advice"), [("0000", "run `carehook migrate`"), ("9999", "run a newer Carehook")])
async def test_another_versions_schema_is_not_touched(on_postgres: Settings, version: str, advice: str) -> None:
    await migrate_store(on_postgres)
    assert on_postgres.database_url is not None
    url = on_postgres.database_url.get_secret_value()
    await execute(url, f"UPDATE alembic_version SET version_num = '{version}'")
    for create in (False, True):
        with pytest.raises(LedgerUnavailable, match=f"schema {version}.*{advice}"):
            await use(on_postgres, create=create)
    assert await execute(url, "SELECT version_num FROM alembic_version") == version


async def test_a_database_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    url = f"postgresql://carehook:hunter2@127.0.0.1:{find_free_port()}/events"
    for create in (False, True):
        with pytest.raises(LedgerUnavailable) as raised:
            await use(build_settings(tmp_path, url), create=create)
        assert "hunter2" not in str(raised.value)
        assert "127.0.0.1" in str(raised.value)
    with pytest.raises(LedgerUnavailable):
        await migrate_store(build_settings(tmp_path, url))


async def test_a_wrong_password_is_not_shown(postgres_server: PostgresServer, tmp_path: Path) -> None:
    url = f"postgresql://postgres:hunter2@127.0.0.1:{postgres_server.port}/postgres"
    with pytest.raises(LedgerUnavailable, match="password authentication failed") as raised:
        await use(build_settings(tmp_path, url))
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "hunter2",
        "mysql://user:hunter2@host/db",
        "sqlite://",
        "sqlite:///:memory:",
        "postgresql://user:pass@hunter2@host/db",
        "postgresql://host/db?password=hunter2",
        "postgresql://user:hunter2@host:port/db",
        "postgresql://user:50@/hunter2@host/db",
    ],
)
async def test_a_url_that_is_none_is_refused_and_not_shown(tmp_path: Path, url: str) -> None:
    with pytest.raises(StartupError, match=r"^CAREHOOK_DATABASE_URL: ") as raised:
        await use(build_settings(tmp_path, url))
    assert "hunter2" not in str(raised.value)


async def test_a_file_may_lie_in_a_folder_with_any_name(tmp_path: Path) -> None:
    (tmp_path / "me@host").mkdir()
    await use(build_settings(tmp_path / "home", f"sqlite:///{tmp_path}/me@host/events.db"))
    assert (tmp_path / "me@host" / "events.db").exists()


# ------------------------------------------------------------------------------------ the rest


async def test_certificates_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    for name, reason in (("none.pem", "cannot be read"), ("empty.pem", "PEM")):
        settings = build_settings(tmp_path / "home").model_copy(update={"ca_file": tmp_path / name})
        with pytest.raises(StartupError, match=f"^CAREHOOK_CA_FILE: .*{name}.*{reason}"):
            await use(settings)


async def test_nothing_is_left_open(tmp_path: Path) -> None:
    settings = build_settings(tmp_path)
    await use(settings)
    before = count_open_files()
    for _ in range(3):
        await use(settings)
    assert count_open_files() <= before
