"""The bare receiver as a process: it answers as its paths say, plain and with TLS, and notes what it answered."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pyreqwest.client import Client
from pyreqwest.exceptions import ConnectError

from carehook.cli.bench.certificates import make_certificates
from carehook.cli.bench.load import build_client
from carehook.cli.bench.processes import BenchmarkFailed, start_process
from carehook.cli.bench.receiver import HOSTS
from carehook.cli.bench.receiving import Receiver, start_receiver


@pytest.fixture
async def receiver(tmp_path: Path) -> AsyncIterator[Receiver]:
    certificates = make_certificates(tmp_path, datetime.now(UTC))
    client = build_client(certificates.authority)
    async with start_receiver(client, certificates, tmp_path) as running:
        yield running
    await client.close()


async def post(client: Client, url: str, event_id: str) -> int:
    return (await client.post(url).header("webhook-id", event_id).body_bytes(b"{}" * 5_000).build().send()).status


@pytest.mark.parametrize("tls", [False, True])
async def test_what_it_answered_is_noted_once(receiver: Receiver, tls: bool) -> None:
    url = receiver.url("name", tls=tls)

    assert [await post(receiver.client, url, event_id) for event_id in ("evt_1", "evt_2", "evt_1")] == [200] * 3

    last = await receiver.wait_for(2)
    receipts = await receiver.read_receipts()
    assert list(receipts) == ["/0/200/name evt_1", "/0/200/name evt_2"]
    assert last == receipts["/0/200/name evt_2"]


async def test_every_host_answers_on_the_same_port(receiver: Receiver) -> None:
    statuses = [await post(receiver.client, receiver.url("name", host=host), f"evt_{host}") for host in HOSTS]

    assert statuses == [200] * 101
    assert await receiver.wait_for(101) > 0


async def test_a_status_is_answered_when_it_is_asked_for(receiver: Receiver) -> None:
    assert await post(receiver.client, receiver.url("name", status=503), "evt_1") == 503


async def test_a_delayed_answer_is_noted_when_it_is_given(receiver: Receiver) -> None:
    answer = asyncio.create_task(post(receiver.client, receiver.url("name", delay=60_000), "evt_late"))

    assert await post(receiver.client, receiver.url("name", delay=1), "evt_soon") == 200

    assert list(await receiver.read_receipts()) == ["/1/200/name evt_soon"]
    answer.cancel()


async def test_who_hangs_holds_up_no_other(receiver: Receiver) -> None:
    hanging = [asyncio.create_task(post(receiver.client, receiver.url(n, delay=None), "evt_1")) for n in range(50)]

    assert await post(receiver.client, receiver.url("name"), "evt_2") == 200

    assert [task.done() for task in hanging] == [False] * 50
    assert list(await receiver.read_receipts()) == ["/0/200/name evt_2"]
    for task in hanging:
        task.cancel()


async def test_what_was_received_is_forgotten_when_asked(receiver: Receiver) -> None:
    await post(receiver.client, receiver.url("name"), "evt_1")
    await receiver.reset()

    assert await receiver.read_receipts() == {}


async def test_its_certificate_holds_for_who_trusts_the_authority_alone(receiver: Receiver, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    stranger = build_client(make_certificates(other, datetime.now(UTC)).authority)

    with pytest.raises(ConnectError):
        await post(stranger, receiver.url("name", tls=True), "evt_1")

    context = ssl.create_default_context(cafile=tmp_path / "authority.pem")
    _, writer = await asyncio.open_connection("127.0.0.1", receiver.https, ssl=context, server_hostname="127.0.0.1")
    writer.close()
    await writer.wait_closed()
    await stranger.close()


async def test_a_process_that_ends_meanwhile_is_said_with_its_last_words(tmp_path: Path) -> None:
    program = "import sys; sys.exit('out of luck')"

    with pytest.raises(BenchmarkFailed, match="the part ended meanwhile: out of luck"):
        async with start_process("the part", "-c", program, log=tmp_path / "log") as process:
            await process.wait()
