"""`kill -9` at random moments under load: what was accepted is delivered, and nothing else is.

A lease of a worker that was killed runs out after 45 seconds, so each test ends with waiting for that.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.faults.accounts import Recipient, Report, Store, check_callers, check_recipients
from tests.faults.callers import Callers
from tests.receivers import Answer, Receiver, RecordingReceiver
from tests.servers.installation import COMMAND, Installation, Service, eventually
from tests.servers.ports import find_free_port
from tests.servers.postgres import PostgresServer

SCHEDULE = ",".join(["0.2"] * 100)
"""Retries at once and for ever, as far as a test goes."""


class FailingReceiver(RecordingReceiver):
    """Takes all but every `fails_every`th request, each after `seconds`, and remembers which it took."""

    def __init__(self, fails_every: int, seconds: float) -> None:
        super().__init__()
        self._fails_every = fails_every
        self._seconds = seconds
        self.taken: list[str] = []

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await self.receive(reader)
            fails = len(self.requests) % self._fails_every == 0
            if not fails:
                self.taken.append(request.headers["webhook-id"])
            # So that there is always something in flight that a kill can meet.
            await asyncio.sleep(self._seconds)
            writer.write(Answer(503 if fails else 200).encode())
            await writer.drain()


class Registered:
    """An organization with endpoints, each with its receiver."""

    def __init__(self, service: Service, receivers: list[FailingReceiver]) -> None:
        self.organization_id: str = service.call("POST", "/v1/organizations", {"name": "Example Insurer"}).body["id"]
        path = f"/v1/organizations/{self.organization_id}"
        self._endpoints = [
            (receiver, service.call("POST", f"{path}/endpoints", {"url": receiver.url}).body) for receiver in receivers
        ]
        self._pending = f"{path}/deliveries?state=pending&limit=1"

    def wait_until_delivered(self, service: Service) -> None:
        """Return once nothing waits or is in flight."""
        for _ in range(2):  # an eventually's patience is not much longer than a lease
            eventually(lambda: len(service.call("GET", self._pending).body["data"]) == 0, "end of the backlog")

    def list_recipients(self) -> list[Recipient]:
        """Who got what."""
        return [
            Recipient(
                endpoint["id"],
                endpoint["signature_value"],
                endpoint["signing_secret"],
                receiver.requests,
                receiver.taken,
            )
            for receiver, endpoint in self._endpoints
        ]


@pytest.fixture
def receivers() -> Iterator[list[FailingReceiver]]:
    with ExitStack() as stack:
        yield [stack.enter_context(FailingReceiver(*each)) for each in ((10**9, 0.0), (7, 0.02), (50, 0.1))]


@pytest.fixture
def chance() -> random.Random:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    return random.Random(seed)


@contextmanager
def spawn(installation: Installation, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of `carehook` that ends with the block, by `kill -9` if it has not ended before."""
    with (
        (installation.folder / "killed.txt").open("ab") as log,
        subprocess.Popen(
            [COMMAND, *arguments],
            env=dict(installation.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def wait_for_progress(receivers: Sequence[Receiver]) -> None:
    """Return once every receiver has got something new."""
    before = [len(receiver.requests) for receiver in receivers]
    eventually(
        lambda: all(len(receiver.requests) > count for receiver, count in zip(receivers, before, strict=True)),
        "progress",
    )


def pause(chance: random.Random) -> None:
    """Let the load work on the service for a random while."""
    time.sleep(chance.uniform(0.05, 1.5))


def show(report: Report, callers: Callers, kills: int) -> None:
    print(f"{kills} kills, {callers.repeated} requests not answered, {len(callers.finished)} consultations: {report}")


@pytest.mark.timeout(200)
def test_a_service_that_is_killed_ten_times_loses_nothing_that_it_accepted(
    tmp_path: Path, receivers: list[FailingReceiver], chance: random.Random
) -> None:
    port = find_free_port()
    installation = Installation(tmp_path, CAREHOOK_RETRY_SCHEDULE=SCHEDULE, CAREHOOK_PORT=str(port))
    with installation.start() as first, ExitStack() as stack:
        assert first.token is not None
        registered = Registered(first, receivers)
        callers = Callers(first.url, first.token, registered.organization_id, publishers=4, professionals=2)
        stack.enter_context(callers)
        pause(chance)
        first.signal(signal.SIGKILL)
        first.wait()
        for _ in range(9):
            with spawn(installation, "serve", "--json"):
                # One time in four it is not waited for, and may not even come to its start.
                if chance.random() < 0.75:
                    wait_for_progress(receivers)
                pause(chance)
        with installation.start() as last:
            service = Service(last.url, first.token, last.process, last.log_path)
            eventually(lambda: service.call("GET", "/healthz").status == 200, "life")
            pause(chance)
            stack.close()
            registered.wait_until_delivered(service)
            last.signal(signal.SIGTERM)
            assert last.wait() == 0
    store = Store(f"sqlite:///{installation.home / 'carehook.db'}")
    check_callers(store, callers)
    report = check_recipients(store, registered.list_recipients())
    show(report, callers, 10)
    assert (report.lost, report.unknown) == (0, 0)
    # Or no kill met anything, and this has proved nothing.
    assert report.interrupted > 0
    assert report.accepted > 100


@pytest.mark.timeout(200)
def test_workers_that_are_killed_beside_an_api_that_lives_lose_nothing(
    tmp_path: Path, receivers: list[FailingReceiver], chance: random.Random, postgres_server: PostgresServer
) -> None:
    """On PostgreSQL, with two workers at a time."""
    database_url = postgres_server.plain_url(postgres_server.create_database())
    installation = Installation(tmp_path, CAREHOOK_RETRY_SCHEDULE=SCHEDULE, CAREHOOK_DATABASE_URL=database_url)
    installation.run("migrate")
    token = installation.run("token", "create", "--role", "operator").stdout.splitlines()[-1]
    with installation.start("api") as started:
        service = Service(started.url, token, started.process, started.log_path)
        registered = Registered(service, receivers)
        with Callers(service.url, token, registered.organization_id, publishers=3, professionals=1) as callers:
            for _ in range(3):
                with spawn(installation, "worker"), spawn(installation, "worker"):
                    wait_for_progress(receivers)
                    pause(chance)
        with spawn(installation, "worker") as worker:
            registered.wait_until_delivered(service)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(30) == 0
    store = Store(database_url)
    check_callers(store, callers)
    report = check_recipients(store, registered.list_recipients())
    show(report, callers, 6)
    assert callers.repeated == 0
    assert (report.lost, report.unknown) == (0, 0)
    # Or no kill met anything, and this has proved nothing.
    assert report.interrupted > 0
    assert report.accepted > 100
