"""Carehook starts with the NATS that CAREHOOK_QUEUE_URL names, or says in one plain sentence why it does not."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from nats.js.api import StreamConfig
from pydantic import SecretStr
from trustme import CA

from carehook.bootstrap import StartupError, open_carehook
from carehook.config import Settings
from carehook.events import CATALOGUE
from carehook.ledger.jetstream import link as jetstream_link
from carehook.ledger.jetstream.stream import Stream
from tests.receivers import RecordingReceiver
from tests.servers.clients import connect_to_nats
from tests.servers.installation import Installation, eventually
from tests.servers.nats import NatsOptions, NatsServers
from tests.servers.ports import find_free_port
from tests.servers.postgres import PostgresServer
from tests.stores import build_settings


def set_queue(settings: Settings, url: str, **others: object) -> Settings:
    return settings.model_copy(update={"queue_url": SecretStr(url), **others})


async def open_and_close(settings: Settings) -> None:
    async with open_carehook(settings) as carehook:
        await carehook.ledger.check()


async def is_connected(settings: Settings) -> bool:
    """Whether Carehook opens, and has the queue."""
    async with open_carehook(settings) as carehook:
        return carehook.queue.find_missing() is None


async def refuse(home: Path, url: str, **others: object) -> str:
    """What is said of a queue that cannot be used."""
    with pytest.raises(StartupError) as raised:
        await open_and_close(set_queue(build_settings(home), url, **others))
    said = str(raised.value)
    assert said.startswith("CAREHOOK_QUEUE_URL: ")
    assert said.endswith(".")
    assert "\n" not in said
    assert "hunter2" not in said
    return said


async def find_stream(home: Path) -> str:
    """The name of an installation's stream."""
    async with open_carehook(build_settings(home)) as carehook, carehook.ledger.snapshot() as tx:
        key_id = await tx.installation.get("encryption_key_id")
    assert key_id is not None
    return Stream(key_id.decode()).name


async def test_the_stream_is_made_at_the_first_start_and_found_at_the_next(
    tmp_path: Path, nats_server: NatsServers
) -> None:
    settings = set_queue(build_settings(tmp_path), nats_server.url)
    await open_and_close(settings)
    await open_and_close(settings)
    async with connect_to_nats(nats_server.url) as client:
        found = await client.jetstream().stream_info(await find_stream(tmp_path))
    assert (found.config.num_replicas, found.state.consumer_count) == (1, 1)


async def test_several_servers_are_asked_until_one_answers(tmp_path: Path, nats_server: NatsServers) -> None:
    nowhere = f"nats://u:hunter2@127.0.0.1:{find_free_port()}"
    assert await is_connected(set_queue(build_settings(tmp_path), f"{nowhere},{nowhere},{nats_server.url}"))


async def test_a_url_that_is_none(tmp_path: Path) -> None:
    assert "nats:// or tls://" in await refuse(tmp_path, "amqp://u:hunter2@host")


async def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    port = find_free_port()
    said = await refuse(tmp_path, f"nats://u:hunter2@127.0.0.1:{port}")
    assert said == f"CAREHOOK_QUEUE_URL: nats://127.0.0.1:{port} does not answer: connection refused."


async def test_a_name_that_is_none(tmp_path: Path) -> None:
    assert "nats://missing.invalid:4222 does not answer" in await refuse(tmp_path, "nats://missing.invalid")


async def test_a_server_without_jetstream(tmp_path: Path) -> None:
    with NatsServers(options=NatsOptions(jetstream=False)) as server:
        said = await refuse(tmp_path, server.url)
    assert "no JetStream" in said
    assert "nats-server -js" in said


@pytest.mark.parametrize(
    ("authorization", "right", "wrong"),
    [
        ("user: carehook, password: hunter2", "carehook:hunter2", "carehook:hunter22"),
        ('user: carehook, password: "p@ss/,w"', "carehook:p%40ss%2F%2Cw", ""),
        ("token: hunter2", "hunter2", "hunter22"),
    ],
)
async def test_a_user_a_password_and_a_token(tmp_path: Path, authorization: str, right: str, wrong: str) -> None:
    with NatsServers(options=NatsOptions(authorization=f"authorization {{ {authorization} }}")) as server:
        await open_and_close(set_queue(build_settings(tmp_path), server.url_of(credentials=right)))
        said = await refuse(tmp_path, server.url_of(credentials=wrong))
    assert "refuses the user, password or token" in said


async def test_a_user_who_may_not_use_jetstream(tmp_path: Path) -> None:
    user = 'user: u, password: hunter2, permissions: { publish: "nothing", subscribe: ">" }'
    with NatsServers(options=NatsOptions(authorization=f"authorization {{ users: [ {{ {user} }} ] }}")) as server:
        said = await refuse(tmp_path, server.url_of(credentials="u:hunter2"))
    assert "the NATS user may not use JetStream" in said


# ------------------------------------------------------------------------------------ TLS


@contextlib.asynccontextmanager
async def serve_tls(
    folder: Path, name: str = "127.0.0.1", authorization: str = ""
) -> AsyncIterator[tuple[NatsServers, Path]]:
    """A server that asks for TLS, and the certificate of the authority that vouches for its name."""
    authority = CA()
    certificate = authority.issue_cert(name)
    certificate.cert_chain_pems[0].write_to_path(folder / "server.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    block = f'tls {{ cert_file: "{folder / "server.pem"}", key_file: "{folder / "key.pem"}" }}'
    with NatsServers(options=NatsOptions(tls=block, authorization=authorization)) as server:
        yield server, folder / "ca.pem"


@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_a_server_with_tls_whose_authority_is_trusted(tmp_path: Path, scheme: str) -> None:
    async with serve_tls(tmp_path) as (server, ca_file):
        url = server.url_of(scheme=scheme)
        assert await is_connected(set_queue(build_settings(tmp_path / "home"), url, ca_file=ca_file))


NEEDED = '["carehook.>", "$JS.API.>", "$JS.ACK.>", "_INBOX.>"]'
"""What docs/operations says that a user needs."""

RESTRICTED = f"{{ user: u, password: hunter2, permissions: {{ publish: {NEEDED}, subscribe: {NEEDED} }} }}"


@pytest.mark.parametrize(
    ("authorization", "credentials"),
    [
        ("user: carehook, password: hunter2", "carehook:hunter2"),
        ("token: hunter2", "hunter2"),
        (f"users: [ {RESTRICTED} ]", "u:hunter2"),
    ],
)
async def test_credentials_are_shown_over_tls(tmp_path: Path, authorization: str, credentials: str) -> None:
    async with serve_tls(tmp_path, authorization=f"authorization {{ {authorization} }}") as (server, ca_file):
        url = server.url_of(scheme="tls", credentials=credentials)
        assert await is_connected(set_queue(build_settings(tmp_path / "home"), url, ca_file=ca_file))


async def test_a_server_whose_certificate_is_for_another_name(tmp_path: Path) -> None:
    async with serve_tls(tmp_path, "elsewhere.example") as (server, ca_file):
        url = server.url_of(scheme="tls", credentials="u:hunter2")
        said = await refuse(tmp_path / "home", url, ca_file=ca_file)
    assert "certificate that is not trusted: IP address mismatch" in said


async def test_a_credentials_file_is_not_understood(tmp_path: Path) -> None:
    assert "a URL ends with its port" in await refuse(tmp_path, "nats://127.0.0.1:4222?credentials=/etc/hunter2.creds")


async def test_a_server_with_tls_whose_authority_is_not_trusted(tmp_path: Path) -> None:
    async with serve_tls(tmp_path) as (server, _):
        said = await refuse(tmp_path / "home", server.url_of(scheme="tls", credentials="u:hunter2"))
    assert "certificate that is not trusted" in said


@pytest.mark.parametrize("credentials", ["carehook:hunter2@", "hunter2@", ""])
async def test_nothing_is_sent_in_clear_to_a_server_that_should_speak_tls(tmp_path: Path, credentials: str) -> None:
    async with pretend(version="2.15.1") as (port, received):
        said = await refuse(tmp_path, f"tls://{credentials}127.0.0.1:{port}")
    assert "does not offer TLS" in said
    assert b"hunter2" not in b"".join(received)


# ------------------------------------------------------------------------------------ old servers, other streams


@contextlib.asynccontextmanager
async def pretend(version: str) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that says it is NATS of a version, and what it is sent."""
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"server_id": "x", "version": version, "headers": True, "max_payload": 1_000_000}
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        while line := await reader.readline():
            received.append(line)
            if line == b"PING\r\n":
                writer.write(b"PONG\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], received


async def test_a_server_too_old_for_schedules(tmp_path: Path) -> None:
    async with pretend(version="2.9.10") as (port, _):
        said = await refuse(tmp_path, f"nats://127.0.0.1:{port}")
    assert said == "CAREHOOK_QUEUE_URL: the NATS server is version 2.9; Carehook needs 2.12 or newer."


async def add_stream(server: NatsServers, config: StreamConfig) -> None:
    async with connect_to_nats(server.url) as client:
        await client.jetstream().add_stream(config)


async def test_a_stream_of_that_name_with_other_settings_is_left_as_it_is(
    tmp_path: Path, nats_server: NatsServers
) -> None:
    name = await find_stream(tmp_path)
    await add_stream(nats_server, StreamConfig(name=name, subjects=[f"{name}.>"]))
    said = await refuse(tmp_path, nats_server.url)
    for part in (name, "its retention is limits, not workqueue", "message schedules", f"nats stream rm {name}"):
        assert part in said


async def test_subjects_that_another_stream_has(tmp_path: Path, nats_server: NatsServers) -> None:
    subjects = [(await find_stream(tmp_path)).replace("-", ".") + ".>"]
    await add_stream(nats_server, StreamConfig(name=f"other-{tmp_path.name}", subjects=subjects))
    assert "subjects overlap" in await refuse(tmp_path, nats_server.url)


async def test_a_consumer_of_that_name_with_other_settings(tmp_path: Path, nats_server: NatsServers) -> None:
    stream = Stream((await find_stream(tmp_path)).removeprefix("carehook-"))
    await add_stream(nats_server, stream.build_config(1))
    other = stream.build_consumer_config().evolve(deliver_subject="elsewhere", max_waiting=None)
    async with connect_to_nats(nats_server.url) as client:
        await client.jetstream().add_consumer(stream.name, other)
    said = await refuse(tmp_path, nats_server.url)
    assert f"nats consumer rm {stream.name} workers" in said


async def test_on_a_cluster_the_stream_has_three_replicas_and_no_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with NatsServers(3) as servers:
        name = await find_stream(tmp_path / "first")
        await open_and_close(set_queue(build_settings(tmp_path / "first"), servers.url))
        async with connect_to_nats(servers.url) as client:
            found = await client.jetstream().stream_info(name)
        assert found.config.num_replicas == 3

        other = Stream((await find_stream(tmp_path / "second")).removeprefix("carehook-"))
        await add_stream(servers, other.build_config(1))
        assert "it has 1 replicas, not 3" in await refuse(tmp_path / "second", servers.url)

        monkeypatch.setattr(jetstream_link, "FIRST_PATIENCE", 0)
        servers.kill(1, 2)
        assert "more than half of the cluster's servers must run" in await refuse(tmp_path / "third", servers.url)


# ------------------------------------------------------------------------------------ the command line


def test_the_command_says_it_in_one_line_and_fails(tmp_path: Path) -> None:
    url = f"nats://u:hunter2@127.0.0.1:{find_free_port()}"
    for command in ("serve", "worker"):
        done = Installation(tmp_path).run(command, code=3, CAREHOOK_QUEUE_URL=url)
        assert done.stdout == ""
        assert done.stderr.splitlines()[-1].startswith("Carehook cannot start: CAREHOOK_QUEUE_URL: nats://127.0.0.1:")
        assert "Traceback" not in done.stderr
        assert "hunter2" not in done.stderr


def has_received(receiver: RecordingReceiver, count: int) -> bool:
    return len(receiver.requests) == count


def test_a_command_does_its_work_while_the_queue_is_away(tmp_path: Path) -> None:
    carehook = Installation(tmp_path, CAREHOOK_QUEUE_URL=f"nats://127.0.0.1:{find_free_port()}")
    created = carehook.run("org", "create", "Example Hospital")
    assert "Example Hospital" in created.stdout
    assert "queue_is_away" in created.stderr
    assert "Traceback" not in created.stderr


def test_an_event_that_the_api_accepted_is_delivered_by_a_worker_that_heard_of_it(
    tmp_path: Path, nats_server: NatsServers, postgres_server: PostgresServer, postgres_database: str
) -> None:
    carehook = Installation(
        tmp_path,
        CAREHOOK_DATABASE_URL=postgres_server.plain_url(postgres_database),
        CAREHOOK_QUEUE_URL=nats_server.url,
    )
    carehook.run("migrate")
    token = carehook.run("token", "create", "--role", "operator").stdout.splitlines()[-1]
    with RecordingReceiver() as receiver, carehook.start("api") as api, carehook.start("worker") as worker:
        worker.wait_for_log("worker_started")
        organization_id = api.call("POST", "/v1/organizations", {"name": "Example Hospital"}, token=token).body["id"]
        endpoints = f"/v1/organizations/{organization_id}/endpoints"
        assert api.call("POST", endpoints, {"url": receiver.url}, token=token).status == 201
        events = f"/v1/organizations/{organization_id}/events"
        report = dict(CATALOGUE["patient_report_sent"].example)
        for number in range(1, 4):
            assert api.call("POST", events, report, token=token).status == 202
            eventually(partial(has_received, receiver, number), "request")
        worker.signal()
        assert worker.wait() == 0
        assert [line for line in worker.read_log() + api.read_log() if line["level"] == "error"] == []
