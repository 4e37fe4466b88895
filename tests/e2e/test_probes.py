"""What load balancers and Prometheus see of a process, from its start to its end, with an API and without."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from nats.js.api import StreamConfig
from nats.js.errors import APIError

from carehook.events import CATALOGUE
from tests.receivers import RecordingReceiver, WaitingReceiver
from tests.servers.clients import connect_to_nats
from tests.servers.installation import Installation, Service, eventually
from tests.servers.nats import NatsServers
from tests.servers.ports import find_free_port
from tests.servers.postgres import PostgresServer

REPORT = json.dumps(CATALOGUE["patient_report_sent"].example)
SHUTTING_DOWN = "Not ready: the process is shutting down."


@pytest.fixture
def carehook(tmp_path: Path) -> Installation:
    return Installation(tmp_path, CAREHOOK_WORKER_PORT="0")


@pytest.fixture
def hanging() -> Iterator[WaitingReceiver]:
    with WaitingReceiver() as receiver:
        yield receiver


def get(url: str, path: str) -> tuple[int, str]:
    """The answer to one request on a connection of its own."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def get_readiness(url: str) -> tuple[int, Any]:
    """What `/readyz` says, and the problem where it is not ready."""
    status, body = get(url, "/readyz")
    return status, json.loads(body).get("detail")


def find_probes(workers: Service, count: int = 1) -> list[str]:
    """Where the probes of so many workers are, in the order of their ports."""

    def look() -> list[str] | None:
        urls = {line["probes"] for line in workers.read_log() if line.get("probes")}
        return sorted(urls) if len(urls) == count else None

    found: list[str] = eventually(look, f"{count} workers with probes")
    return found


def publish(carehook: Installation, url: str) -> str:
    """An event for a new endpoint; its id."""
    organization_id = carehook.read("org", "create", "Example Hospital")["id"]
    carehook.run("endpoint", "create", organization_id, url)
    return str(carehook.read("event", "publish", organization_id, stdin=REPORT)["id"])


# ---------------------------------------------------------------- a worker without an API


def test_a_worker_answers_probes_and_nothing_else(carehook: Installation) -> None:
    with RecordingReceiver() as receiver:
        publish(carehook, receiver.url)
        with carehook.start("worker") as worker:
            (url,) = find_probes(worker)
            assert get(url, "/healthz") == (200, '{"status":"alive"}')
            assert get(url, "/readyz") == (200, '{"status":"ready"}')
            worker.wait_for_log("attempt")
            succeeded = 'carehook_attempts_total{outcome="succeeded"} 1.0'
            eventually(lambda: succeeded in get(url, "/metrics")[1], "count of the attempt")
            assert "carehook_circuits_open 0.0" in get(url, "/metrics")[1]
            for path in ("/openapi.json", "/v1/organizations", "/v1/event-types"):
                assert get(url, path)[0] == 404


def test_without_the_setting_a_worker_listens_nowhere(tmp_path: Path) -> None:
    with Installation(tmp_path).start("worker") as worker:
        (started,) = worker.wait_for_log("worker_started")
        assert started["probes"] is None


def find_free_pair() -> int:
    """A free port whose next one is free, too."""
    while True:
        first = find_free_port()
        with socket.socket() as second:
            try:
                second.bind(("127.0.0.1", first + 1))
            except (OSError, OverflowError):
                continue
        return first


def test_each_process_answers_on_a_port_of_its_own(carehook: Installation) -> None:
    first = find_free_pair()
    urls = [f"http://127.0.0.1:{first}", f"http://127.0.0.1:{first + 1}"]
    with carehook.start("worker", "--processes", "2", "--port", str(first)) as workers:
        assert find_probes(workers, 2) == urls
        assert [get(url, "/healthz")[0] for url in urls] == [200, 200]
        workers.signal()
        assert workers.wait() == 0


def test_a_worker_says_that_its_store_is_away_and_when_it_is_back(carehook: Installation) -> None:
    with PostgresServer() as server:
        url = server.plain_url(server.create_database())
        carehook.run("migrate", CAREHOOK_DATABASE_URL=url)
        with carehook.start("worker", CAREHOOK_DATABASE_URL=url) as worker:
            (probes,) = find_probes(worker)
            server.stop()
            assert get_readiness(probes) == (503, "Not ready: the store does not answer.")
            assert "carehook_store_up 0.0" in get(probes, "/metrics")[1]
            assert get(probes, "/healthz")[0] == 200
            server.start()
            eventually(lambda: get_readiness(probes) == (200, None), "readiness")


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_process_whose_queue_is_away_goes_on_and_says_so(carehook: Installation, command: str) -> None:
    with NatsServers() as nats, carehook.start(command, CAREHOOK_QUEUE_URL=nats.url) as service:
        url = service.url or find_probes(service)[0]
        assert get(url, "/readyz") == (200, '{"status":"ready"}')
        nats.stop()
        told = "The queue does not answer; until it does, the store is asked instead."
        answer = (200, json.dumps({"status": "ready", "without": told}, separators=(",", ":")))
        eventually(lambda: get(url, "/readyz") == answer, "word of the queue")
        nats.start()
        eventually(lambda: get(url, "/readyz") == (200, '{"status":"ready"}'), "queue")


def test_a_process_whose_stream_somebody_has_made_otherwise_goes_on_and_says_so(carehook: Installation) -> None:
    async def replace_stream() -> None:
        async with connect_to_nats(nats.url) as client:
            jetstream = client.jetstream()
            (found,) = await jetstream.streams_info()
            name = found.config.name
            assert name is not None
            while True:
                await jetstream.delete_stream(name)
                # Unless the worker was quicker, and has made its own anew.
                with contextlib.suppress(APIError):
                    await jetstream.add_stream(StreamConfig(name=name, subjects=[f"{name}.>"]))
                    return

    with NatsServers() as nats, carehook.start("worker", CAREHOOK_QUEUE_URL=nats.url) as service:
        (url,) = find_probes(service)
        asyncio.run(replace_stream())
        told = "The queue's stream cannot be used as it is set; the log says why. The store is asked instead."
        answer = (200, json.dumps({"status": "ready", "without": told}, separators=(",", ":")))
        eventually(lambda: get(url, "/readyz") == answer, "word of the stream")

        def find_reasons() -> list[str]:
            return [line["reason"] for line in service.read_log() if line["event"] == "jetstream_unusable"]

        eventually(lambda: any("its retention is limits, not workqueue" in each for each in find_reasons()), "reason")


def test_a_worker_that_drains_is_not_ready_until_it_is_done(carehook: Installation, hanging: WaitingReceiver) -> None:
    publish(carehook, hanging.url)
    with carehook.start("worker") as worker:
        (url,) = find_probes(worker)
        eventually(lambda: hanging.requests, "a request")
        worker.signal()
        worker.wait_for_log("draining")
        assert get_readiness(url) == (503, SHUTTING_DOWN)
        assert get(url, "/healthz")[0] == 200
        hanging.gate.set()
        assert worker.wait() == 0
        (line,) = worker.wait_for_log("attempt")
        assert line["outcome"] == "succeeded"


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_port_that_is_taken_keeps_workers_from_starting(carehook: Installation, processes: str) -> None:
    first = find_free_pair()
    taken = first + int(processes) - 1
    with socket.create_server(("127.0.0.1", taken)):
        done = carehook.run("worker", "--processes", processes, "--port", str(first), code=3)
    assert done.stderr == (
        f"Carehook cannot start: it cannot listen on 127.0.0.1:{taken}: address already in use. "
        "Choose another with CAREHOOK_HOST and CAREHOOK_WORKER_PORT.\n"
    )


def test_workers_for_whom_there_are_no_ports_left_do_not_start(carehook: Installation) -> None:
    done = carehook.run("worker", "--processes", "3", code=3, CAREHOOK_WORKER_PORT="65534")
    assert done.stderr == (
        "Carehook cannot start: CAREHOOK_WORKER_PORT: 3 processes from 65534 on need ports above 65535.\n"
    )


# ---------------------------------------------------------------- an API that is about to end


@pytest.mark.parametrize("command", ["serve", "api"])
def test_after_sigterm_requests_are_still_taken_while_readiness_says_no(tmp_path: Path, command: str) -> None:
    carehook = Installation(tmp_path, CAREHOOK_DRAIN_NOTICE="300")
    with carehook.start(command) as service:
        assert get_readiness(service.url) == (200, None)
        service.signal()
        service.wait_for_log("draining")
        assert get_readiness(service.url) == (503, SHUTTING_DOWN)
        assert service.call("GET", "/v1/event-types", token="nobody").status == 401
        service.signal()
        assert service.wait() == -signal.SIGTERM, "a second signal does not wait"


def test_the_notice_ends(tmp_path: Path) -> None:
    with Installation(tmp_path, CAREHOOK_DRAIN_NOTICE="0.2").start() as service:
        service.signal()
        assert service.wait() == 0


def test_a_person_who_ends_it_does_not_wait_for_load_balancers(tmp_path: Path) -> None:
    with Installation(tmp_path, CAREHOOK_DRAIN_NOTICE="300").start() as service:
        service.signal(signal.SIGINT)
        assert service.wait() == 0
