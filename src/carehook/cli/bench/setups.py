"""What is measured side by side: the three sizes of Carehook, in one process or with API and workers apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import SecretStr
from pyreqwest.client import Client

from carehook.bootstrap import open_keyring
from carehook.cli.bench.carehook import Carehook
from carehook.cli.bench.certificates import Certificates
from carehook.cli.bench.processes import CAREHOOK, read_announcement, run_carehook, start_process
from carehook.cli.bench.stores import DatabaseServer, delete_stream
from carehook.config import PREFIX, Settings


@dataclass(frozen=True, slots=True)
class Setup:
    """One way to run Carehook.

    `is_apart`: `carehook api` and `carehook worker` rather than `carehook serve`. `is_brief`: another one stands for it
    in most scenarios.
    """

    name: str
    title: str
    needs_database: bool = False
    needs_queue: bool = False
    is_apart: bool = False
    is_brief: bool = False

    @property
    def worker_role(self) -> str:
        """The name of the process that delivers."""
        return "worker" if self.is_apart else "serve"


EMBEDDED: Final = Setup("embedded", "embedded")
POSTGRESQL: Final = Setup("postgresql", "PostgreSQL", needs_database=True, is_brief=True)
POSTGRESQL_APART: Final = Setup("postgresql-apart", "PostgreSQL, api + worker", needs_database=True, is_apart=True)
JETSTREAM: Final = Setup(
    "jetstream", "PostgreSQL + JetStream, api + worker", needs_database=True, needs_queue=True, is_apart=True
)
SETUPS: Final = (EMBEDDED, POSTGRESQL, POSTGRESQL_APART, JETSTREAM)


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers that setups may use, and how many worker processes run where they are apart."""

    database: SecretStr | None = None
    queue: SecretStr | None = None
    workers: int = 1

    def can_run(self, setup: Setup) -> bool:
        """Whether a setup has the servers that it needs."""
        has_database = self.database is not None or not setup.needs_database
        return has_database and (self.queue is not None or not setup.needs_queue)


@asynccontextmanager
async def make_store(
    setup: Setup, servers: Servers, certificates: Certificates, folder: Path
) -> AsyncIterator[dict[str, str]]:
    """The environment of a Carehook on a fresh store, in `folder` or on the servers, which ends with the block."""
    await asyncio.to_thread(folder.mkdir)
    async with AsyncExitStack() as made:
        environment = {
            "CAREHOOK_HOME": str(folder / "home"),
            "CAREHOOK_HOST": "127.0.0.1",
            "CAREHOOK_PORT": "0",
            "CAREHOOK_ALLOW_HTTP": "true",
            "CAREHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
            "CAREHOOK_CA_FILE": str(certificates.authority),
        }
        if setup.needs_database and servers.database is not None:
            database = await made.enter_async_context(DatabaseServer(servers.database).make_database())
            environment["CAREHOOK_DATABASE_URL"] = database.get_secret_value()
        if setup.needs_queue and servers.queue is not None:
            environment["CAREHOOK_QUEUE_URL"] = servers.queue.get_secret_value()
            made.push_async_callback(delete_stream, servers.queue, open_keyring(build_settings(environment)).key_id)
        yield environment


@asynccontextmanager
async def start_setup(
    setup: Setup, servers: Servers, client: Client, certificates: Certificates, folder: Path
) -> AsyncIterator[Carehook]:
    """Carehook on a fresh store, with an operator's token, ended with the block."""
    async with AsyncExitStack() as started:
        environment = await started.enter_async_context(make_store(setup, servers, certificates, folder))
        token = await _prepare_store(environment) if setup.is_apart else None
        processes, url = await _find_database(setup, servers), ""
        for role, arguments in _list_processes(setup, servers.workers):
            log = folder / f"{role}.log"
            name = f"carehook {role}"
            process = await started.enter_async_context(
                start_process(name, *CAREHOOK, *arguments, log=log, environment=environment)
            )
            processes[role] = process.pid
            if role != "worker":
                announced = await read_announcement(process, name, log)
                url, token = announced["url"], token or announced["first_operator_token"]
        yield Carehook(url, token or "", processes, setup.worker_role, client)


def build_settings(environment: Mapping[str, str]) -> Settings:
    """The settings of an environment, and of nothing in our own."""
    absent: dict[str, Any] = {"database_url": None, "queue_url": None, "encryption_key": None}
    return Settings(**absent | {name.removeprefix(PREFIX).lower(): value for name, value in environment.items()})


def _list_processes(setup: Setup, workers: int) -> list[tuple[str, list[str]]]:
    # Should this process be killed, those that can end by themselves.
    orphaned = "--until-stdin-closes"
    if not setup.is_apart:
        return [("serve", ["serve", "--json", orphaned])]
    return [("api", ["api", "--json"]), ("worker", ["worker", "--processes", str(workers), orphaned])]


async def _find_database(setup: Setup, servers: Servers) -> dict[str, int]:
    """The process of the database as a role of its own, where it can be watched."""
    if not setup.needs_database or servers.database is None:
        return {}
    pid = await DatabaseServer(servers.database).find_process()
    return {} if pid is None else {"postgresql": pid}


async def _prepare_store(environment: Mapping[str, str]) -> str:
    """Make the tables and an operator's token, as `carehook serve` would by itself; the token."""
    await run_carehook("migrate", environment=environment)
    made = await run_carehook("token", "create", "--role", "operator", "--json", environment=environment)
    token: str = orjson.loads(made)["token"]
    return token
