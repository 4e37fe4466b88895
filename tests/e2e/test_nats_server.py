"""The NATS that other tests rely on keeps what it was told, and goes when they do."""

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch
from urllib.parse import urlsplit

import nats.errors
import pytest
from nats.aio.client import Client
from nats.js.errors import ServiceUnavailableError

from tests.servers.clients import connect_to_nats
from tests.servers.hosts import THIS_MACHINE
from tests.servers.nats import NatsOptions, NatsServers
from tests.servers.ports import find_free_port

REPOSITORY = Path(__file__).parents[2]


async def count_messages(server: NatsServers, publish: int = 0) -> int:
    """How many messages a stream of this test holds, once as many more are stored."""
    async with connect_to_nats(server.url) as client:
        jetstream = client.jetstream()
        await jetstream.add_stream(name="kept", subjects=["kept"])
        for _ in range(publish):
            await jetstream.publish("kept", b"")
        return (await jetstream.stream_info("kept")).state.messages


@pytest.mark.parametrize("options", [NatsOptions(), NatsOptions(sync_interval="always")])
async def test_what_was_stored_survives_a_kill_until_it_is_forgotten(options: NatsOptions) -> None:
    with NatsServers(options=options) as server:
        assert await count_messages(server, publish=7) == 7
        server.kill()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", urlsplit(server.url).port or 0))
        await server.restart()
        assert await count_messages(server) == 7
        server.stop()
        server.forget()
        server.start()
        assert await count_messages(server) == 0


async def test_a_cluster_goes_on_without_one_of_its_nodes() -> None:
    with NatsServers(3) as servers:
        assert await count_messages(servers, publish=1) == 1
        servers.stop(0)
        async with connect_to_nats(servers.url_of(1)) as client:
            assert await count_streams(client) == 1


async def count_streams(client: Client) -> int:
    """How many streams there are, once those that are left have chosen a leader."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(TimeoutError, nats.errors.TimeoutError, ServiceUnavailableError):
                return (await client.jetstream().account_info()).streams


def test_a_port_that_somebody_has_taken_meanwhile_is_exchanged_for_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [taken.getsockname()[1], *(find_free_port() for _ in range(20))]
        with patch.object(type(THIS_MACHINE), "choose_port", side_effect=ports), NatsServers() as servers:
            assert urlsplit(servers.url).port in ports[1:]


def test_nothing_is_left_of_tests_that_were_killed() -> None:
    program = """if True:
        from tests.servers.nats import NatsServers
        with NatsServers(2) as servers:
            pids = [file.read_text() for file in servers._directory.glob("*.pid")]
            print(servers._directory, servers._watchdog.pid, *pids, flush=True)
            input()
    """
    tests = subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert tests.stdout is not None
    directory, *pids = tests.stdout.readline().split()
    assert len(pids) == 3
    ended = [os.pidfd_open(int(pid)) for pid in pids]
    tests.send_signal(signal.SIGKILL)
    tests.communicate()
    wait_until_all_ended(ended)
    assert not Path(directory).exists()


def wait_until_all_ended(descriptors: Sequence[int]) -> None:
    """A process descriptor becomes readable when its process ends."""
    for descriptor in descriptors:
        select.select([descriptor], [], [])
        os.close(descriptor)
