"""`carehook serve` as a process: how it starts, what keeps it from starting, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from carehook.events import CATALOGUE
from tests.receivers import RecordingReceiver, WaitingReceiver
from tests.servers.installation import COMMAND, Installation, Service, eventually, is_alive
from tests.servers.postgres import PostgresServer

REPORT = CATALOGUE["patient_report_sent"].example
KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
OTHER_KEY = "OTg3NjU0MzIxMDk4NzY1NDMyMTA5ODc2NTQzMjEwOTg="


class GatedReceiver(WaitingReceiver):
    """One that tells how many wait."""

    def wait_for(self, count: int) -> None:
        eventually(lambda: len(self.requests) >= count, f"{count} requests")


@pytest.fixture
def carehook(tmp_path: Path) -> Installation:
    return Installation(tmp_path)


@pytest.fixture
def receiver() -> Iterator[GatedReceiver]:
    with GatedReceiver() as receiver:
        yield receiver


def register(service: Service, url: str) -> str:
    """An organization with one endpoint."""
    organization_id: str = service.call("POST", "/v1/organizations", {"name": "Example Hospital"}).body["id"]
    assert service.call("POST", f"/v1/organizations/{organization_id}/endpoints", {"url": url}).status == 201
    return organization_id


def publish(service: Service, organization_id: str, count: int) -> list[str]:
    accepted = service.call(
        "POST", f"/v1/organizations/{organization_id}/events/batch", {"events": [dict(REPORT)] * count}
    )
    ids: list[str] = accepted.body["ids"]
    return ids


def read_rows(carehook: Installation, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(carehook.home / "carehook.db")
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


# ---------------------------------------------------------------- starting


def test_the_first_token_is_printed_once_alone_on_its_line(carehook: Installation) -> None:
    starts = [_read_first_lines(carehook) for _ in range(2)]
    listens, shown_once, token = starts[0]
    assert listens.startswith("Carehook ")
    assert "http://127.0.0.1:" in listens
    assert "shown this once" in shown_once
    assert token.startswith("carehook_")
    assert " " not in token
    assert starts[1][0].startswith("Carehook ")
    assert starts[1][1:] == [], "an operator has a token by now"
    with carehook.start() as service:
        assert service.token is None
        assert service.call("GET", "/v1/organizations", token=token).status == 200


def _read_first_lines(carehook: Installation) -> list[str]:
    """What a start prints until it is ended."""
    with subprocess.Popen(
        [COMMAND, "serve"], env=dict(carehook.environment), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.terminate()
        return (first + process.stdout.read()).splitlines()


def test_the_store_is_for_its_owner_alone(carehook: Installation) -> None:
    with carehook.start():
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [carehook.home, *carehook.home.iterdir()]}
    assert modes.pop("home") == 0o700
    assert set(modes.values()) == {0o600}


def test_an_attempt_is_one_line_of_json_without_payload_and_secret(carehook: Installation) -> None:
    with RecordingReceiver() as receiver, carehook.start() as service:
        publish(service, register(service, receiver.url), 1)
        (line,) = service.wait_for_log("attempt")
        text = service.log_path.read_text()
    assert (line["outcome"], line["status_code"], line["attempt"], line["level"]) == ("succeeded", 200, 1, "info")
    assert {"delivery_id", "event_id", "endpoint_id", "organization_id", "duration_ms"} <= line.keys()
    assert REPORT["payload"]["content"]["plan"] not in text
    assert REPORT["payload"]["patient"]["code"] not in text
    assert receiver.requests[0].headers["x-webhook-signature"] not in text
    assert (service.token or "carehook_") not in text


def test_only_what_is_bad_is_logged_where_that_is_wanted(carehook: Installation) -> None:
    with RecordingReceiver() as receiver, carehook.start(CAREHOOK_LOG_LEVEL="warning") as service:
        organization_id = register(service, receiver.url)
        (event_id,) = publish(service, organization_id, 1)
        _wait_for_state(service, event_id, "succeeded")
        assert service.read_log() == []


def _wait_for_state(service: Service, event_id: str, state: str) -> Any:
    def look() -> Any:
        (delivery,) = service.call("GET", f"/v1/events/{event_id}").body["deliveries"]
        return delivery if delivery["state"] == state else None

    return eventually(look, f"delivery that {state}")


# ---------------------------------------------------------------- what keeps it from starting


def check_refused(carehook: Installation, *words: str, command: tuple[str, ...] = ("serve",), **settings: str) -> None:
    """It exits with 3 and one plain sentence that holds the words."""
    done = carehook.run(*command, code=3, **settings)
    assert done.stdout == ""
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith(
        f"Carehook cannot {'start' if command[0] in ('serve', 'api', 'worker') else 'do this'}: "
    )
    assert [word for word in words if word not in sentence] == []


def test_a_port_in_use_is_said_and_nothing_is_begun(carehook: Installation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        check_refused(carehook, f"127.0.0.1:{port}", "CAREHOOK_PORT", CAREHOOK_PORT=port)
    assert not carehook.home.exists()


def test_an_address_of_another_machine_is_said(carehook: Installation) -> None:
    check_refused(carehook, "192.0.2.1", "CAREHOOK_HOST", command=("serve", "--host", "192.0.2.1"))


def test_a_wrong_setting_is_named(carehook: Installation) -> None:
    check_refused(carehook, "CAREHOOK_RETRY_SCHEDULE", CAREHOOK_RETRY_SCHEDULE="soon")
    assert not carehook.home.exists()


def test_the_wrong_key_is_said_by_the_service_and_by_commands(carehook: Installation) -> None:
    carehook.run("org", "create", "Example Hospital", CAREHOOK_ENCRYPTION_KEY=KEY)
    check_refused(carehook, "CAREHOOK_ENCRYPTION_KEY", CAREHOOK_ENCRYPTION_KEY=OTHER_KEY)
    check_refused(carehook, "CAREHOOK_ENCRYPTION_KEY", command=("org", "list"), CAREHOOK_ENCRYPTION_KEY=OTHER_KEY)


def test_a_key_that_others_can_read_is_refused(carehook: Installation) -> None:
    carehook.run("org", "list")
    (carehook.home / "encryption.key").chmod(0o644)
    check_refused(carehook, "chmod 600")


def test_a_store_of_a_newer_version_is_left_alone(carehook: Installation) -> None:
    carehook.run("org", "list")
    with sqlite3.connect(carehook.home / "carehook.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    check_refused(carehook, "newer than this version knows")


def test_a_server_without_tables_asks_for_migrate_and_starts_after_it(
    carehook: Installation, postgres_server: PostgresServer, postgres_database: str
) -> None:
    url = postgres_server.plain_url(postgres_database)
    check_refused(carehook, "carehook migrate", command=("api",), CAREHOOK_DATABASE_URL=url)
    carehook.run("migrate", CAREHOOK_DATABASE_URL=url)
    with carehook.start("api", CAREHOOK_DATABASE_URL=url) as service:
        assert service.call("GET", "/readyz").status == 200


def test_serve_makes_what_it_needs_on_an_empty_server(
    carehook: Installation, postgres_server: PostgresServer, postgres_database: str
) -> None:
    url = postgres_server.plain_url(postgres_database)
    with RecordingReceiver() as receiver, carehook.start(CAREHOOK_DATABASE_URL=url) as service:
        (event_id,) = publish(service, register(service, receiver.url), 1)
        _wait_for_state(service, event_id, "succeeded")
        assert [request.headers["webhook-id"] for request in receiver.requests] == [event_id]


# ---------------------------------------------------------------- ending


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_at_a_signal_requests_in_flight_end_and_nothing_new_is_begun(
    tmp_path: Path, receiver: GatedReceiver, number: signal.Signals
) -> None:
    carehook = Installation(tmp_path, CAREHOOK_ENDPOINT_CONCURRENCY="2")
    with carehook.start() as service:
        publish(service, register(service, receiver.url), 7)
        receiver.wait_for(2)
        service.signal(number)
        service.wait_for_log("draining")
        receiver.gate.set()
        assert service.wait() == 0
    assert len(receiver.requests) == 2
    rows = read_rows(carehook, "SELECT state, attempt_count, lease_until IS NULL FROM deliveries ORDER BY state")
    assert rows == [("pending", 0, 1)] * 5 + [("succeeded", 1, 1)] * 2, "results are kept and leases given back"


def test_a_clients_request_in_flight_ends_and_no_other_is_taken(carehook: Installation) -> None:
    with carehook.start() as service:
        organization_id = register(service, "http://127.0.0.1:9/")
        address = (urlsplit(service.url).hostname, urlsplit(service.url).port)
        body = json.dumps(dict(REPORT)).encode()
        with socket.create_connection(address, timeout=60) as client:
            client.sendall(
                f"POST /v1/organizations/{organization_id}/events HTTP/1.1\r\nhost: localhost\r\n"
                f"authorization: Bearer {service.token}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nexpect: 100-continue\r\n\r\n".encode()
            )
            assert client.recv(1024).startswith(b"HTTP/1.1 100"), "the service has begun to read it"
            service.signal()
            eventually(lambda: not _accepts(address), "closed port")
            client.sendall(body)
            assert client.recv(1024).startswith(b"HTTP/1.1 202")
        assert service.wait() == 0
    assert read_rows(carehook, "SELECT count(*) FROM events") == [(1,)]


def _accepts(address: tuple[str | None, int | None]) -> bool:
    try:
        socket.create_connection(address, timeout=60).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_second_signal_ends_it_at_once_and_what_was_in_flight_is_sent_again(
    carehook: Installation, receiver: GatedReceiver
) -> None:
    with carehook.start() as service:
        publish(service, register(service, receiver.url), 1)
        receiver.wait_for(1)
        service.signal()
        service.wait_for_log("draining")
        service.signal()
        assert service.wait() == -signal.SIGTERM
    assert read_rows(carehook, "SELECT state, attempt_count, lease_until IS NULL FROM deliveries") == [
        ("pending", 0, 0)
    ], "its lease runs out, and it is due again"


def test_what_was_not_begun_is_delivered_after_the_next_start(tmp_path: Path, receiver: GatedReceiver) -> None:
    carehook = Installation(tmp_path, CAREHOOK_ENDPOINT_CONCURRENCY="1")
    with carehook.start() as service:
        ids = publish(service, register(service, receiver.url), 3)
        receiver.wait_for(1)
        service.signal()
        service.wait_for_log("draining")
        receiver.gate.set()
        assert service.wait() == 0
    with carehook.start():
        receiver.wait_for(3)
    assert sorted(each.headers["webhook-id"] for each in receiver.requests) == sorted(ids)


# ---------------------------------------------------------------- API and workers apart


def read_started(workers: Service) -> list[int]:
    return [line["worker_pid"] for line in workers.read_log() if "worker_pid" in line]


def test_workers_deliver_what_the_api_accepts_and_one_that_dies_is_replaced(
    carehook: Installation, receiver: GatedReceiver
) -> None:
    receiver.gate.set()
    token = carehook.run("token", "create", "--role", "operator").stdout.splitlines()[-1]
    with carehook.start("api") as api, carehook.start("worker", "--processes", "2") as workers:
        assert api.token is None
        organization_id = api.call("POST", "/v1/organizations", {"name": "Example Hospital"}, token=token).body["id"]
        endpoints = f"/v1/organizations/{organization_id}/endpoints"
        assert api.call("POST", endpoints, {"url": receiver.url}, token=token).status == 201
        events = f"/v1/organizations/{organization_id}/events"
        assert api.call("POST", events, dict(REPORT), token=token).status == 202
        receiver.wait_for(1)

        first = eventually(lambda: found if len(found := read_started(workers)) == 2 else None, "two workers")
        os.kill(first[0], signal.SIGKILL)
        (died,) = workers.wait_for_log("worker_died")
        assert died["exit_code"] == -signal.SIGKILL
        later = eventually(lambda: found if len(found := read_started(workers)) == 3 else None, "a third worker")

        # The one that was killed may not have come to say that it had started.
        living = set(later) - {first[0]}
        eventually(lambda: living <= {line.get("pid") for line in workers.read_log()}, "start")
        workers.signal()
        assert workers.wait() == 0
        assert [pid for pid in later if is_alive(pid)] == []


def test_workers_do_not_outlive_their_supervisor(carehook: Installation) -> None:
    with carehook.start("worker", "--processes", "2") as workers:
        pids = eventually(lambda: found if len(found := read_started(workers)) == 2 else None, "two workers")
        eventually(lambda: len([1 for line in workers.read_log() if line.get("pid") in pids]) == 2, "start")
        workers.signal(signal.SIGKILL)
        eventually(lambda: not any(is_alive(pid) for pid in pids), "end of the workers")
        assert [line for line in workers.read_log() if line["event"] == "worker_died"] == []
