"""The measurements. Each gives a number and its unit; rates are taken over a run of a fixed number of requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import orjson
from pyreqwest.client import Client, ClientBuilder

from carehook.cli.bench.processes import BenchmarkFailed, RunningCarehook, RunningReceiver
from carehook.events import CATALOGUE

CALLERS = 64
BATCH = 500
BATCH_CALLERS = 4
LATENCY_RATE = 200

_SETTLE_SECONDS = 120.0
_MILLISECOND = 1_000_000


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure, with the least that is wanted of it (or the most, where `is_limit`)."""

    name: str
    value: float
    unit: str
    target: float | None = None
    is_limit: bool = False

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        return self.value <= self.target if self.is_limit else self.value >= self.target


def build_client() -> Client:
    """The HTTP client that all loads are made with."""
    return ClientBuilder().no_proxy().follow_redirects(False).build()


def build_event() -> bytes:
    """The contract's `patient_consultation_finished`, about 2 KB."""
    return orjson.dumps(CATALOGUE["patient_consultation_finished"].example)


async def measure_ceiling(client: Client, receiver: RunningReceiver, requests: int) -> float:
    """Requests per second of the HTTP client alone against the bare receiver: no service can do better."""
    body = build_event()
    headers = {
        "content-type": "application/json",
        "user-agent": "ceiling",
        "x-webhook-signature": "v" * 43,
        "webhook-id": "evt_" + "0" * 32,
        "webhook-timestamp": "1700000000",
        "webhook-signature": "v1," + "0" * 44,
    }
    url = f"{receiver.url}/webhooks"

    async def send() -> None:
        response = await client.post(url).headers(headers).body_bytes(body).build().send()
        if response.status != 200:
            raise BenchmarkFailed(f"The bare receiver answered {response.status}.")

    return requests / await _run(send, requests, CALLERS)


async def measure_accepting(client: Client, carehook: RunningCarehook, requests: int) -> float:
    """Events accepted per second, each in a request of its own, with 64 callers."""
    publish = _build_publisher(client, carehook, "events", build_event())
    return requests / await _run(publish, requests, CALLERS)


async def measure_accepting_batches(client: Client, carehook: RunningCarehook, batches: int) -> float:
    """Events accepted per second in batches of 500."""
    body = b'{"events":[' + b",".join([build_event()] * BATCH) + b"]}"
    publish = _build_publisher(client, carehook, "events/batch", body)
    return batches * BATCH / await _run(publish, batches, BATCH_CALLERS)


async def measure_delivering(
    client: Client, carehook: RunningCarehook, receiver: RunningReceiver, batches: int
) -> float:
    """Events per second from the first publish to the last receipt, published in batches of 500."""
    await reset(client, receiver)
    begun = time.monotonic_ns()
    await measure_accepting_batches(client, carehook, batches)
    receipts = await wait_for(client, receiver, batches * BATCH)
    return batches * BATCH * 1e9 / (max(receipts.values()) - begun)


async def measure_latency(
    client: Client, carehook: RunningCarehook, receiver: RunningReceiver, events: int
) -> list[float]:
    """Milliseconds from the publish of each event to its receipt, sorted, at 200 events per second."""
    await reset(client, receiver)
    body = build_event()
    published: dict[str, int] = {}

    async def publish() -> None:
        begun = time.monotonic_ns()
        response = await _post(client, carehook, "events", body)
        published[orjson.loads(response)["id"]] = begun

    tasks = []
    first = asyncio.get_running_loop().time()
    for number in range(events):
        # An open loop: a slow answer does not put off the next publish, or the worst moments would not be counted.
        await asyncio.sleep(first + number / LATENCY_RATE - asyncio.get_running_loop().time())
        tasks.append(asyncio.create_task(publish()))
    await asyncio.gather(*tasks)
    receipts = await wait_for(client, receiver, events)
    return sorted((receipts[event_id] - begun) / _MILLISECOND for event_id, begun in published.items())


async def reset(client: Client, receiver: RunningReceiver) -> None:
    """Let the receiver forget what it received."""
    await client.post(f"{receiver.url}/reset").build().send()


async def wait_for(client: Client, receiver: RunningReceiver, events: int) -> dict[str, int]:
    """When each event arrived, once as many have. Raises BenchmarkFailed where they do not in two minutes."""
    receipts: dict[str, int] = {}
    deadline = time.monotonic() + _SETTLE_SECONDS
    while time.monotonic() < deadline:
        response = await client.get(f"{receiver.url}/receipts").build().send()
        receipts = orjson.loads(bytes(await response.bytes()))["first"]
        if len(receipts) >= events:
            return receipts
        await asyncio.sleep(0.2)
    raise BenchmarkFailed(f"Of {events} events only {len(receipts)} arrived in time.")


def pick_percentile(ordered: list[float], share: float) -> float:
    """The value below which `share` of the ordered values lie (nearest rank)."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _build_publisher(
    client: Client, carehook: RunningCarehook, path: str, body: bytes
) -> Callable[[], Awaitable[None]]:
    async def publish() -> None:
        await _post(client, carehook, path, body)

    return publish


async def _post(client: Client, carehook: RunningCarehook, path: str, body: bytes) -> bytes:
    request = (
        client.post(f"{carehook.url}/v1/organizations/{carehook.organization_id}/{path}")
        .headers({"authorization": f"Bearer {carehook.token}", "content-type": "application/json"})
        .body_bytes(body)
        .build()
    )
    response = await request.send()
    if response.status != 202:
        raise BenchmarkFailed(f"Carehook answered {response.status} to a publish.")
    return bytes(await response.bytes())


async def _run(act: Callable[[], Awaitable[None]], times: int, callers: int) -> float:
    """Seconds that `callers` took together to act `times` times."""
    left = iter(range(times))

    async def call() -> None:
        for _ in left:
            await act()

    begun = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    return time.perf_counter() - begun
