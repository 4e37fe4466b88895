"""How many events a second the API takes; when it answers, they are on disk."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from carehook.cli.bench.bodies import BodySize, build_batch, build_event
from carehook.cli.bench.carehook import Organization
from carehook.cli.bench.load import CALLERS, run_callers
from carehook.cli.bench.measured import ACCEPTED, Measured
from carehook.cli.bench.scenarios.bench import Bench, Scenario
from carehook.cli.bench.scenarios.delivering import BATCH, BATCH_CALLERS

_EVENTS: Final = 15_000
_BATCHES: Final = 60
ACCEPTED_ALONE: Final = "accepted with nothing to deliver, single events, 64 callers"
ACCEPTED_BATCHES: Final = "accepted with nothing to deliver, batches of 500"


async def accept_single(bench: Bench) -> Sequence[Measured]:
    """Events accepted per second, each in a request of its own: with an endpoint that receives, and without."""
    event = build_event()
    receiving = await bench.carehook.make_organization([bench.receiver.url("accept")])
    silent = await bench.carehook.make_organization([])
    events = bench.count(_EVENTS, CALLERS)

    def publish_to(organization: Organization) -> Callable[[], Awaitable[None]]:
        async def publish() -> None:
            await organization.publish(event)

        return publish

    await run_callers(publish_to(silent), max(CALLERS, events // 10))
    meter = bench.meter()
    alone = events / await run_callers(publish_to(silent), events)
    cpu_alone = meter.read()
    await bench.receiver.reset()
    meter = bench.meter()
    delivering = events / await run_callers(publish_to(receiving), events)
    cpu_delivering = meter.read()
    await bench.receiver.wait_for(events)
    return [
        Measured(ACCEPTED, delivering, "events/s", cpu=cpu_delivering),
        Measured(ACCEPTED_ALONE, alone, "events/s", cpu=cpu_alone),
    ]


async def accept_batches(bench: Bench) -> Sequence[Measured]:
    """Events accepted per second in batches of 500, for an organization without endpoints."""
    organization = await bench.carehook.make_organization([])
    batch_events = bench.choose(BATCH, 50)
    batch = build_batch(BodySize.USUAL, batch_events)
    batches = bench.count(_BATCHES, BATCH_CALLERS)

    async def publish() -> None:
        await organization.publish_batch(batch)

    await publish()
    meter = bench.meter()
    rate = batches * batch_events / await run_callers(publish, batches, BATCH_CALLERS)
    return [Measured(ACCEPTED_BATCHES, rate, "events/s", cpu=meter.read())]


SCENARIOS: Final = (
    Scenario("accept", "single events from 64 callers", accept_single, is_brief=True),
    Scenario("accept-batches", "batches of 500 from 4 callers", accept_batches, is_brief=True),
)
