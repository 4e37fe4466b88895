"""How many deliveries a second arrive, from the first publish to the last receipt."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from carehook.cli.bench.bodies import BodySize, build_batch
from carehook.cli.bench.ceiling import Ceiling
from carehook.cli.bench.load import run_callers
from carehook.cli.bench.measured import DELIVERED, DELIVERED_TLS, Measured
from carehook.cli.bench.scenarios.bench import Bench, Scenario

BATCH: Final = 500
BATCH_CALLERS: Final = 4
_DELIVERIES: Final = 30_000


@dataclass(frozen=True, slots=True)
class Delivering:
    """A load of batches: how large, to how many endpoints, and how those answer (`delay` is milliseconds)."""

    figure: str
    size: BodySize = BodySize.USUAL
    tls: bool = False
    endpoints: int = 1
    delay: int = 0
    deliveries: int = _DELIVERIES

    async def __call__(self, bench: Bench) -> Sequence[Measured]:
        """Deliveries per second."""
        endpoints = bench.choose(self.endpoints, min(self.endpoints, 20))
        urls = [bench.receiver.url(number, tls=self.tls, delay=self.delay) for number in range(endpoints)]
        organization = await bench.carehook.make_organization(urls)
        events = max(1, bench.count(self.deliveries, 100) // endpoints)
        batch_events = min(BATCH, events)
        batches = round(events / batch_events)
        batch = build_batch(self.size, batch_events)

        async def publish() -> None:
            await organization.publish_batch(batch)

        await bench.receiver.reset()
        await publish()  # connections are opened and caches filled
        await bench.receiver.wait_for(batch_events * endpoints)
        await bench.receiver.reset()
        meter, begun = bench.meter(), time.monotonic_ns()
        await run_callers(publish, batches, BATCH_CALLERS)
        deliveries = batches * batch_events * endpoints
        last = await bench.receiver.wait_for(deliveries)
        rate = deliveries * 1e9 / (last - begun)
        # A receiver that takes its time is no measure of the client.
        ceiling = None if self.delay else Ceiling(self.size, self.tls).name
        return [Measured(self.figure, rate, "deliveries/s", ceiling=ceiling, cpu=meter.read())]


def _deliver(name: str, description: str, load: Delivering, *, is_brief: bool = False) -> Scenario:
    ceilings = () if load.delay else (Ceiling(load.size, load.tls),)
    return Scenario(name, description, load, ceilings, is_brief=is_brief)


SCENARIOS: Final = (
    _deliver(
        "deliver",
        "2 KB bodies in batches of 500 to one endpoint",
        Delivering(DELIVERED),
        is_brief=True,
    ),
    _deliver(
        "deliver-tls",
        "the same to a receiver with TLS",
        Delivering(DELIVERED_TLS, tls=True),
        is_brief=True,
    ),
    _deliver("deliver-1kb", "bodies of 1 KB", Delivering("delivered, 1 KB", BodySize.SMALL)),
    _deliver(
        "deliver-20kb", "bodies of 20 KB", Delivering("delivered, 20 KB", BodySize.LARGE, deliveries=_DELIVERIES // 3)
    ),
    _deliver("fan-out-10", "each event to 10 endpoints", Delivering("delivered, fan-out 10", endpoints=10)),
    _deliver("fan-out-1000", "each event to 1,000 endpoints", Delivering("delivered, fan-out 1,000", endpoints=1_000)),
    _deliver(
        "delay-50",
        "10 endpoints that answer after 50 ms",
        Delivering("delivered, 10 endpoints that answer after 50 ms", endpoints=10, delay=50),
    ),
    _deliver(
        "delay-500",
        "10 endpoints that answer after 500 ms",
        Delivering(
            "delivered, 10 endpoints that answer after 500 ms",
            endpoints=10,
            delay=500,
            deliveries=_DELIVERIES // 3,
        ),
    ),
)
