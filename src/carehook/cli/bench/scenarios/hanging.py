"""What endpoints that hang cost their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from carehook.cli.bench.bodies import BodySize, build_batch
from carehook.cli.bench.load import pick_percentile
from carehook.cli.bench.measured import HANGING_RATIO, Measured
from carehook.cli.bench.scenarios.bench import Bench, Scenario
from carehook.cli.bench.scenarios.delivering import BATCH
from carehook.cli.bench.scenarios.latency import measure_latencies

_HANGING: Final = 100
_DUE_EACH: Final = 1_000
_HEALTHY: Final = 10
_EVENTS_PER_SECOND: Final = 20
_SECONDS: Final = 20


async def suffer_hanging_neighbours(bench: Bench) -> Sequence[Measured]:
    """The 99th percentile from publish to receipt at 10 healthy endpoints, without and with 100 that never answer.

    It is taken over the 20 seconds after 1,000 deliveries became due to each of those.
    """
    healthy = await bench.carehook.make_organization([bench.receiver.url(number) for number in range(_HEALTHY)])
    hanging = await bench.carehook.make_organization(
        [bench.neighbour.url(number, delay=None) for number in range(bench.choose(_HANGING, 5))]
    )
    events = bench.count(_SECONDS * _EVENTS_PER_SECOND, 10)
    await measure_latencies(healthy, bench.receiver, bench.count(_EVENTS_PER_SECOND, 10), _EVENTS_PER_SECOND)
    without = await measure_latencies(healthy, bench.receiver, events, _EVENTS_PER_SECOND)
    batch = build_batch(BodySize.USUAL, bench.choose(BATCH, 10))
    for _ in range(_DUE_EACH // BATCH):
        await hanging.publish_batch(batch)
    beside = await measure_latencies(healthy, bench.receiver, events, _EVENTS_PER_SECOND)
    await hanging.delete_endpoints()
    p99_without, p99_beside = pick_percentile(without, 0.99), pick_percentile(beside, 0.99)
    return [
        Measured(HANGING_RATIO, p99_beside / p99_without, "×"),
        Measured("healthy endpoints' p99 without endpoints that hang", p99_without, "ms"),
        Measured("healthy endpoints' p99 beside endpoints that hang", p99_beside, "ms"),
    ]


SCENARIOS: Final = (
    Scenario(
        "hanging",
        "10 healthy endpoints beside 100 that hang with 1,000 due deliveries each",
        suffer_hanging_neighbours,
    ),
)
