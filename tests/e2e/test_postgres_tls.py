"""PostgreSQL over TLS: all that Carehook opens is encrypted and checked as its URL asks, or it says why not."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
import trustme

from carehook.bootstrap import StartupError, migrate_store
from carehook.events import CATALOGUE
from carehook.ledger.connections.database import Database, parse_database_url
from carehook.ledger.port import LedgerUnavailable
from tests.receivers import RecordingReceiver
from tests.servers.clients import connect_to_postgres
from tests.servers.installation import Installation, eventually
from tests.servers.postgres import PostgresServer
from tests.servers.tls_front import TlsFront
from tests.stores import build_settings

REPORT = CATALOGUE["patient_report_sent"].example
CONNECTIONS = """
    SELECT client_port, query LIKE 'LISTEN%' AS listens FROM pg_stat_activity
    WHERE application_name = 'carehook' AND datname = current_database()
"""


@dataclass(frozen=True)
class Site:
    """A database behind TLS; in `folder` the authority's certificate, `ca.pem`, and another one's, `other.pem`."""

    server: PostgresServer
    database: str
    front: TlsFront
    folder: Path

    def url(self, options: str) -> str:
        """The database's URL with options, in which `FOLDER` stands for the folder."""
        plain = self.server.plain_url(self.database).replace(f":{self.server.port}/", f":{self.front.port}/")
        return f"{plain}?{options.replace('FOLDER', str(self.folder))}"

    @property
    def shown_url(self) -> str:
        """How the URL is shown to people."""
        return f"postgresql://postgres:***@127.0.0.1:{self.front.port}/{self.database}"

    async def find_connections(self) -> list[asyncpg.Record]:
        """What PostgreSQL knows of Carehook's connections."""
        async with connect_to_postgres(self.server.plain_url(self.database)) as connection:
            return list(await connection.fetch(CONNECTIONS))


def open_site(
    folder: Path, server: PostgresServer, database: str, *names: str, client_authority: trustme.CA | None = None
) -> Iterator[Site]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    trustme.CA().cert_pem.write_to_path(folder / "other.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    if client_authority is not None:
        client_authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    with TlsFront(server.port, context) as front:
        yield Site(server, database, front, folder)


@pytest.fixture
def site(tmp_path: Path, postgres_server: PostgresServer, postgres_database: str) -> Iterator[Site]:
    yield from open_site(tmp_path, postgres_server, postgres_database, "127.0.0.1")


@pytest.fixture
def misnamed(tmp_path: Path, postgres_server: PostgresServer, postgres_database: str) -> Iterator[Site]:
    """A server whose certificate is for another name than it has."""
    yield from open_site(tmp_path, postgres_server, postgres_database, "elsewhere.example")


async def test_every_connection_of_a_running_service_is_encrypted(site: Site) -> None:
    url = site.url("sslmode=verify-full&sslrootcert=FOLDER/ca.pem")
    carehook = Installation(site.folder, CAREHOOK_DATABASE_URL=url)
    carehook.run("migrate")
    with RecordingReceiver() as receiver, carehook.start() as service:
        organization_id = service.call("POST", "/v1/organizations", {"name": "Example Hospital"}).body["id"]
        path = f"/v1/organizations/{organization_id}"
        assert service.call("POST", f"{path}/endpoints", {"url": receiver.url}).status == 201
        assert service.call("POST", f"{path}/events", dict(REPORT)).status == 202
        eventually(lambda: receiver.requests, "request")
        found = await site.find_connections()
    assert any(each["listens"] for each in found)
    assert len(found) >= 3
    assert {each["client_port"] for each in found} <= site.front.encrypted_ports
    assert site.front.in_clear == 0


@pytest.mark.parametrize(
    "options",
    [
        "sslmode=require",
        "ssl=require",
        "sslmode=require&sslrootcert=FOLDER/ca.pem",
        "sslmode=verify-ca&sslrootcert=FOLDER/ca.pem",
        "sslmode=verify-full&sslrootcert=FOLDER/ca.pem",
    ],
)
async def test_both_ways_to_the_database_are_encrypted(site: Site, options: str) -> None:
    await check_both_ways(site, options)


@pytest.mark.parametrize("options", ["sslmode=require", "sslmode=verify-ca&sslrootcert=FOLDER/ca.pem"])
async def test_a_name_is_looked_at_where_that_is_asked_for_alone(misnamed: Site, options: str) -> None:
    await check_both_ways(misnamed, options)


async def check_both_ways(site: Site, options: str) -> None:
    """SQLAlchemy's connections and our own do their work, and nothing has begun in clear."""
    database = Database(parse_database_url(site.url(options)))
    async with database.read():
        assert [tuple(row) for row in await database.connections.fetch("SELECT 7")] == [(7,)]
        assert len(await site.find_connections()) == len(site.front.encrypted_ports) == 2
    await database.close()
    assert site.front.in_clear == 0


async def test_a_client_can_show_a_certificate(
    tmp_path: Path, postgres_server: PostgresServer, postgres_database: str
) -> None:
    clients = trustme.CA()
    certificate = clients.issue_cert("carehook.example")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "client.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "client.key")
    for site in open_site(tmp_path, postgres_server, postgres_database, "127.0.0.1", client_authority=clients):
        await check_both_ways(site, "sslmode=require&sslcert=FOLDER/client.pem&sslkey=FOLDER/client.key")


NOT_TRUSTED = "has a certificate that is not trusted"


@pytest.mark.parametrize(
    "options",
    [
        "sslmode=require&sslrootcert=FOLDER/other.pem",
        "sslmode=verify-ca&sslrootcert=FOLDER/other.pem",
        "sslmode=verify-full&sslrootcert=FOLDER/other.pem",
        "sslmode=verify-full&sslrootcert=system",
        "sslrootcert=system",
    ],
)
async def test_an_authority_that_is_not_trusted(site: Site, options: str) -> None:
    await check_refused_both_ways(site.url(options), f"{site.shown_url} {NOT_TRUSTED}: unable to get local issuer")


async def test_another_name(misnamed: Site) -> None:
    url = misnamed.url("sslmode=verify-full&sslrootcert=FOLDER/ca.pem")
    await check_refused_both_ways(url, f"{misnamed.shown_url} {NOT_TRUSTED}: IP address mismatch")


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_a_server_without_tls_is_not_used_in_clear(
    tmp_path: Path, postgres_server: PostgresServer, postgres_database: str, mode: str
) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    url = f"{postgres_server.plain_url(postgres_database)}?sslmode={mode}&sslrootcert={tmp_path / 'ca.pem'}"
    await check_refused_both_ways(url, "does not offer TLS")


async def check_refused_both_ways(url: str, words: str) -> None:
    database = Database(parse_database_url(url))
    with pytest.raises(LedgerUnavailable) as refusal:
        async with database.read():
            """Nothing is read."""
    assert words in str(refusal.value)
    with pytest.raises(LedgerUnavailable) as refusal:
        await database.connections.fetch("SELECT 7")
    assert words in str(refusal.value)
    await database.close()


def test_a_command_says_it_in_one_sentence_and_fails(misnamed: Site) -> None:
    url = misnamed.url("sslmode=verify-full&sslrootcert=FOLDER/ca.pem")
    for command, beginning in ((("serve",), "start"), (("migrate",), "do this")):
        done = Installation(misnamed.folder).run(*command, code=3, CAREHOOK_DATABASE_URL=url)
        (sentence,) = done.stderr.splitlines()
        assert sentence.startswith(f"Carehook cannot {beginning}: the database {misnamed.shown_url} {NOT_TRUSTED}: ")


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ("sslmode=yes", "sslmode is one of disable, allow, prefer, require, verify-ca, verify-full"),
        ("sslrootcert=FOLDER/ca.pem", "certificates need an sslmode of require, verify-ca, verify-full"),
        ("sslmode=require&sslrootcert=system", "sslrootcert=system needs sslmode=verify-full"),
        ("sslmode=verify-full&sslrootcert=FOLDER/none.pem", "none.pem cannot be read: no such file or directory"),
        ("sslmode=verify-full&sslrootcert=FOLDER/junk.pem", "junk.pem holds no certificates in PEM form"),
        ("sslmode=require&sslcert=FOLDER/none.pem", "none.pem or its key cannot be read: no such file or directory"),
        ("sslmode=require&sslcert=FOLDER/ca.pem", "are no pair in PEM form, or the key has a password"),
        ("sslmode=verify-full&sslcert=FOLDER/ca.pem", "needs sslrootcert"),
        ("channel_binding=require&sslmode=require", "options that are not known here: channel_binding"),
        ("record_class=dict", "options that are not known here: record_class"),
        ("timeout=soon", "the database URL's timeout must be a number"),
    ],
)
async def test_what_cannot_be_done_is_told_at_the_start(tmp_path: Path, options: str, rule: str) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "junk.pem").write_text("junk")
    url = f"postgresql://u:hunter2@127.0.0.1:1/name?{options.replace('FOLDER', str(tmp_path))}"
    with pytest.raises(StartupError) as refusal:
        await migrate_store(build_settings(tmp_path / "home", url))
    assert rule in str(refusal.value)
    assert str(refusal.value).startswith("CAREHOOK_DATABASE_URL: ")
    assert "hunter2" not in str(refusal.value)
