"""How long an event takes from its publish to its receipt, at a steady rate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from carehook.cli.bench.bodies import build_event
from carehook.cli.bench.carehook import Organization
from carehook.cli.bench.load import pick_percentile, run_at_rate
from carehook.cli.bench.measured import ALL_RECEIVED, LATENCY_P50, LATENCY_P99, Measured
from carehook.cli.bench.receiver import HOSTS
from carehook.cli.bench.receiving import Receiver
from carehook.cli.bench.scenarios.bench import Bench, Scenario

_SECONDS: Final = 10
_MILLISECOND: Final = 1_000_000
_SECOND: Final = 1_000_000_000
_ENDPOINTS: Final = 1_000
_ROUNDS: Final = 10


async def measure_latencies(
    organization: Organization, receiver: Receiver, events: int, rate: float
) -> Sequence[float]:
    """Milliseconds from the beginning of each publish to each receipt of its event, at so many events a second."""
    body = build_event()
    published: dict[str, int] = {}

    async def publish() -> None:
        begun = time.monotonic_ns()
        published[await organization.publish(body)] = begun

    await receiver.reset()
    await run_at_rate(publish, events, rate)
    await receiver.wait_for(events * len(organization.endpoint_ids))
    receipts = await receiver.read_receipts()
    event_ids = {key: key.rpartition(" ")[2] for key in receipts}
    return [
        (instant - published[event_ids[key]]) / _MILLISECOND
        for key, instant in receipts.items()
        if event_ids[key] in published
    ]


@dataclass(frozen=True, slots=True)
class Latency:
    """Publish to receipt at a rate of events."""

    rate: int
    p50: str
    p99: str

    async def __call__(self, bench: Bench) -> Sequence[Measured]:
        """Two percentiles in milliseconds."""
        organization = await bench.carehook.make_organization([bench.receiver.url("latency")])
        await measure_latencies(organization, bench.receiver, bench.count(self.rate, 20), self.rate)
        meter = bench.meter()
        events = bench.count(_SECONDS * self.rate, 20)
        latencies = await measure_latencies(organization, bench.receiver, events, self.rate)
        return [
            Measured(self.p50, pick_percentile(latencies, 0.5), "ms", cpu=meter.read()),
            Measured(self.p99, pick_percentile(latencies, 0.99), "ms"),
        ]


async def reach_a_thousand(bench: Bench) -> Sequence[Measured]:
    """Seconds from the publish of one event until 1,000 endpoints have it, on one host and on a hundred.

    It is the median of several, once there are connections. The first one on a hundred hosts has to open them.
    """
    _, *on_one = await _reach_all(bench, HOSTS[:1])
    first, *on_many = await _reach_all(bench, HOSTS[1:])
    return [
        Measured(ALL_RECEIVED, pick_percentile(on_one, 0.5), "s"),
        Measured(f"{ALL_RECEIVED}, the slowest of {len(on_one)}", max(on_one), "s"),
        Measured(f"{ALL_RECEIVED}, on 100 hosts", pick_percentile(on_many, 0.5), "s"),
        Measured(f"{ALL_RECEIVED}, on 100 hosts, the first time", first, "s"),
    ]


async def _reach_all(bench: Bench, hosts: Sequence[str]) -> Sequence[float]:
    endpoints = bench.choose(_ENDPOINTS, 50)
    organization = await bench.carehook.make_organization(
        [bench.receiver.url(number, host=hosts[number % len(hosts)]) for number in range(endpoints)]
    )
    event, seconds = build_event(), []
    for _ in range(1 + bench.count(_ROUNDS, 3)):
        await bench.receiver.reset()
        begun = time.monotonic_ns()
        await organization.publish(event)
        seconds.append((await bench.receiver.wait_for(endpoints) - begun) / _SECOND)
    return seconds


SCENARIOS: Final = (
    Scenario(
        "latency-200",
        "publish to receipt at 200 events/s",
        Latency(200, "publish to receipt at 200 events/s, p50", "publish to receipt at 200 events/s, p99"),
        is_brief=True,
    ),
    Scenario(
        "latency-500",
        "publish to receipt at 500 events/s",
        Latency(500, LATENCY_P50, LATENCY_P99),
        is_brief=True,
    ),
    Scenario("one-to-1000", "one event to 1,000 endpoints, until all have it", reach_a_thousand, is_brief=True),
)
