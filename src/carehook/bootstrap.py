"""The composition root: from settings to a running Carehook. The only place that names concrete classes."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog
from pydantic import SecretStr
from sqlalchemy.engine import URL

from carehook.access.tokens import Tokens
from carehook.application import Application
from carehook.clock import Clock, utc_now
from carehook.config import Settings
from carehook.directory.endpoints import Endpoints
from carehook.directory.organizations import Organizations
from carehook.dispatch.access_tokens import AccessTokens
from carehook.dispatch.addresses import AddressRules
from carehook.dispatch.delivery import Deliverer
from carehook.dispatch.interventions import Interventions
from carehook.dispatch.request import USER_AGENT
from carehook.dispatch.sender import GuardedSender
from carehook.dispatch.worker import Limits, Worker
from carehook.insights import Insights
from carehook.intake.accept import Intake
from carehook.intake.care import CareRecords
from carehook.intake.examples import Examples
from carehook.keyring import Keyring, WrongKeyError, load_keyring
from carehook.ledger.connections.database import Database, parse_database_url
from carehook.ledger.jetstream.queue import QueueJetStream, SurveyedQueue
from carehook.ledger.jetstream.servers import JetStreamUnavailable, build_tls, parse_queue_url
from carehook.ledger.moving import ARRIVING_FACT, MOVED_FACT, MoveRefused, move_store, refuse_arriving, refuse_moved
from carehook.ledger.occupancy import occupy
from carehook.ledger.port import Ledger, Queue
from carehook.ledger.postgresql.ledger import LedgerPostgresql
from carehook.ledger.postgresql.queue import QueuePostgresql
from carehook.ledger.sql.ledger import LedgerSql, OnDue
from carehook.ledger.sql.queue import QueueSql
from carehook.ledger.sql.schema import migrate, read_version
from carehook.metrics import Metrics

_KEY_FACT = "encryption_key_id"

_log = structlog.get_logger("carehook.bootstrap")


class StartupError(Exception):
    """Carehook cannot start with these settings; the message is a plain sentence that says why and what to do."""


@asynccontextmanager
async def open_carehook(
    settings: Settings,
    *,
    create: bool = False,
    needs_queue: bool = True,
    clock: Clock = utc_now,
    limits: Limits | None = None,
) -> AsyncIterator[Application]:
    """Carehook on the store that the settings name, closed when the block ends.

    The embedded store is brought to this version's schema. Another one is left as it is, but with `create` it is made
    where it is empty. What does not need the queue goes on where that is away. The worker keeps to `limits`, by default
    those of the settings. Raises `StartupError`, `LedgerUnavailable` or `KeyringError`, each with a sentence for
    people.
    """
    async with AsyncExitStack() as opened:
        keyring = open_keyring(settings)
        database = open_database(settings)
        opened.push_async_callback(database.close)
        opened.enter_context(occupy(database))
        if is_embedded(settings) or (create and await read_version(database) is None):
            await migrate(database)
        queue = build_queue(database, notifying=settings.queue_url is None)
        opened.push_async_callback(queue.close)
        jetstream = build_jetstream(settings, queue, keyring.key_id, clock)
        ledger = build_ledger(database, (jetstream or queue).announce)
        await ledger.check()
        await _check_not_moved(ledger)
        await _check_key(ledger, keyring)
        if jetstream is not None:
            opened.push_async_callback(jetstream.close)
            await _connect(jetstream, needs_queue=needs_queue)
        rules = AddressRules(allowed_networks=settings.allowed_networks, allow_http=settings.allow_http)
        sender = open_sender(settings, rules)
        opened.push_async_callback(sender.close)
        limits = limits or Limits(settings.concurrency, settings.endpoint_concurrency)
        application = _assemble(settings, clock, limits, ledger, jetstream or queue, keyring, rules, sender)
        opened.push_async_callback(application.intake.close)
        yield application


def _assemble(
    settings: Settings,
    clock: Clock,
    limits: Limits,
    ledger: Ledger,
    queue: Queue,
    keyring: Keyring,
    rules: AddressRules,
    sender: GuardedSender,
) -> Application:
    metrics = Metrics()
    intake = Intake(ledger, metrics, clock)
    tokens = AccessTokens(sender, time.monotonic)
    deliverer = Deliverer(sender, tokens, keyring, settings.retry_schedule, clock)
    return Application(
        settings=settings,
        clock=clock,
        ledger=ledger,
        queue=queue,
        metrics=metrics,
        organizations=Organizations(ledger, clock),
        endpoints=Endpoints(ledger, keyring, rules, clock),
        intake=intake,
        care=CareRecords(ledger, intake, clock),
        examples=Examples(ledger, clock),
        interventions=Interventions(ledger, clock),
        insights=Insights(ledger, keyring, clock),
        tokens=Tokens(ledger, clock),
        worker=Worker(ledger, queue, deliverer, limits, metrics, clock),
    )


async def migrate_store(settings: Settings) -> None:
    """Bring the store that the settings name to this version's schema."""
    make_home(settings)
    database = open_database(settings)
    try:
        await migrate(database)
    finally:
        await database.close()


async def move_embedded_store(settings: Settings, target_url: str) -> Mapping[str, int]:
    """Move the embedded store to the empty database at `target_url`; how many rows of each table.

    Raises `MoveRefused`, `StartupError` or `LedgerUnavailable`, each with a sentence for people; nothing has changed.
    """
    file = find_embedded_file(settings)
    if file is None:
        raise MoveRefused("The store is a server's already: unset CAREHOOK_DATABASE_URL to move the embedded one.")
    if not file.exists():
        raise MoveRefused(f"There is no store to move: there is no {file}. CAREHOOK_HOME chooses the folder.")
    url = _parse_url(target_url, "the target")
    if url.get_backend_name() == "sqlite":
        raise MoveRefused("The target must be a PostgreSQL server: postgresql://user:password@host/name.")
    source, target = open_database(settings), Database(url)
    try:
        return await move_store(source, target, utc_now())
    finally:
        await source.close()
        await target.close()


def build_queue(database: Database, *, notifying: bool = True) -> QueueSql:
    """The queue of a database. On PostgreSQL, processes can tell each other by it what is due."""
    return QueueSql(database) if database.is_sqlite else QueuePostgresql(database, notifying=notifying)


def build_ledger(database: Database, on_due: OnDue) -> LedgerSql:
    """The ledger of a database."""
    return LedgerSql(database, on_due) if database.is_sqlite else LedgerPostgresql(database, on_due)


def is_embedded(settings: Settings) -> bool:
    """Whether the store is a file of SQLite's rather than a server."""
    return open_url(settings).get_secret_value().startswith("sqlite")


def find_embedded_file(settings: Settings) -> Path | None:
    """The file of the embedded store, whether there is one yet; None for a server. Raises as `open_database` does."""
    url = _parse_url(open_url(settings).get_secret_value())
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def open_url(settings: Settings) -> SecretStr:
    """The URL of the store: the one that is set, or the embedded database in the home folder."""
    embedded = URL.create("sqlite", database=str(settings.home.absolute() / "carehook.db"))
    return settings.database_url or SecretStr(embedded.render_as_string())


def open_database(settings: Settings) -> Database:
    """The store's engines. Raises `StartupError` where the URL is not one."""
    file = find_embedded_file(settings)
    if file is not None:
        _make_private_file(file)
    return Database(_parse_url(open_url(settings).get_secret_value()))


def _parse_url(text: str, name: str = "CAREHOOK_DATABASE_URL") -> URL:
    try:
        url = parse_database_url(text)
    except ValueError as error:
        raise StartupError(f"{name}: {error}.") from None
    # Elsewhere than before the @, a password or a part of it would be shown with the URL when the store is down.
    is_server = url.get_backend_name() != "sqlite"
    if is_server and ("@" in f"{url.host}{url.database}" or "password" in url.query):
        raise StartupError(
            f"{name}: write it as postgresql://user:password@host/name, with every @ of the password as %40."
        )
    return url


def build_jetstream(settings: Settings, queue: SurveyedQueue, installation: str, clock: Clock) -> QueueJetStream | None:
    """The queue with JetStream around it, where the settings name a server. Raises `StartupError`."""
    if settings.queue_url is None:
        return None
    try:
        servers = parse_queue_url(settings.queue_url.get_secret_value())
    except ValueError as error:
        raise StartupError(f"CAREHOOK_QUEUE_URL: {error}.") from None
    try:
        tls = build_tls(_read_certificates(settings))
    except ValueError as error:
        raise StartupError(f"CAREHOOK_CA_FILE: {settings.ca_file}: {error}.") from None
    return QueueJetStream(queue, servers, tls, installation, clock)


async def _connect(jetstream: QueueJetStream, *, needs_queue: bool) -> None:
    try:
        await jetstream.open()
    except JetStreamUnavailable as error:
        if needs_queue:
            raise StartupError(f"CAREHOOK_QUEUE_URL: {error}.") from None
        _log.warning("queue_is_away", reason=str(error), meanwhile="workers find in the database what this makes due")


def open_keyring(settings: Settings) -> Keyring:
    """The keyring of this installation. Raises `KeyringError`, or `StartupError` where its file cannot be used."""
    home = make_home(settings)
    try:
        return load_keyring(home, settings.encryption_key)
    except OSError as error:
        raise StartupError(
            f"CAREHOOK_HOME: the encryption key in {home} cannot be read or made: {error.strerror}."
        ) from None


def open_sender(settings: Settings, rules: AddressRules) -> GuardedSender:
    """What sends requests. Raises `StartupError` where the certificates to trust cannot be read."""
    certificates = _read_certificates(settings)
    try:
        return GuardedSender(rules, user_agent=USER_AGENT, root_certificates=certificates)
    except ValueError as error:
        raise StartupError(f"CAREHOOK_CA_FILE: {settings.ca_file}: {error}.") from None


def make_home(settings: Settings) -> Path:
    """The home folder, made where it is missing, for the owner alone."""
    try:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(f"CAREHOOK_HOME: the folder {settings.home} cannot be made: {error.strerror}.") from None
    return settings.home


def _make_private_file(path: Path) -> None:
    """Make an empty database that its owner alone can read; SQLite gives its journals the same mode."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise StartupError(f"The database file {path} cannot be opened: {error.strerror}.") from None


async def _check_not_moved(ledger: Ledger) -> None:
    async with ledger.snapshot() as snapshot:
        moved = await snapshot.installation.get(MOVED_FACT)
        arriving = await snapshot.installation.get(ARRIVING_FACT)
    if moved is not None:
        raise refuse_moved(moved)
    if arriving is not None:
        raise refuse_arriving()


async def _check_key(ledger: Ledger, keyring: Keyring) -> None:
    """Raises `WrongKeyError` unless the key is the one that this store was made with."""
    key_id = keyring.key_id.encode()
    async with ledger.snapshot() as snapshot:
        present = await snapshot.installation.get(_KEY_FACT)
    if present is None:
        async with ledger.transaction() as transaction:
            present = await transaction.installation.put_first(_KEY_FACT, key_id)
    if present != key_id:
        raise WrongKeyError(
            f"This store's secrets were sealed under the key {present.decode()}, but the key in use is "
            f"{keyring.key_id}. Start Carehook with the key that the store was made with: CAREHOOK_ENCRYPTION_KEY, "
            "or the file encryption.key of its home folder."
        )


def _read_certificates(settings: Settings) -> bytes | None:
    if settings.ca_file is None:
        return None
    try:
        return settings.ca_file.read_bytes()
    except OSError as error:
        raise StartupError(f"CAREHOOK_CA_FILE: {settings.ca_file} cannot be read: {error.strerror}.") from None
