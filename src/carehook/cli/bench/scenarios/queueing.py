"""A store on which nothing works but the benchmark: endpoints, what is due to them, and what a worker does with it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from carehook.application import Application
from carehook.cli.bench.bodies import BodySize, build_batch
from carehook.cli.bench.processes import BenchmarkFailed
from carehook.clock import utc_now
from carehook.directory.endpoints import NewEndpoint
from carehook.directory.organizations import NewOrganization
from carehook.events.codec import parse_events
from carehook.ids import ATTEMPT, new_id
from carehook.ledger.records import Attempt, AttemptOutcome, ClaimedDelivery, FinishedAttempt
from carehook.ledger.states import Transition

CLAIM: Final = 500
"""Deliveries in a claim."""

_LEASE: Final = timedelta(minutes=10)


async def make_organization(carehook: Application, endpoints: int) -> str:
    """The id of a new organization with so many endpoints, to which nothing is ever sent."""
    organization = await carehook.organizations.create(NewOrganization(name="Benchmark"))
    for number in range(endpoints):
        await carehook.endpoints.register(organization.id, NewEndpoint(url=f"http://127.0.0.1:9/{number}"))
    return organization.id


async def accept(carehook: Application, organization_id: str, events: int) -> int:
    """Accept so many events of 1 KB; how many deliveries these are."""
    accepted = await carehook.intake.accept(organization_id, parse_events(build_batch(BodySize.SMALL, events)))
    return accepted.deliveries


async def claim(carehook: Application, room: int) -> Sequence[ClaimedDelivery]:
    """Claim at most `CLAIM` deliveries, of each endpoint as many as there is `room` for.

    As a worker does that knows nothing: it surveys the whole store. Raises `BenchmarkFailed` where it finds nothing.
    """
    carehook.queue.wake()
    claimed = await carehook.queue.claim(CLAIM, room=lambda _: room, now=utc_now(), lease=_LEASE)
    if not claimed:
        raise BenchmarkFailed("A claim found nothing though something is due.")
    return claimed


async def succeed(carehook: Application, claimed: Sequence[ClaimedDelivery]) -> None:
    """Record that each of the deliveries arrived at its next attempt."""
    await carehook.queue.finish([_build_success(each) for each in claimed], utc_now())


def _build_success(claimed: ClaimedDelivery) -> FinishedAttempt:
    attempt = Attempt(
        id=new_id(ATTEMPT),
        delivery_id=claimed.id,
        number=claimed.attempt_count + 1,
        started_at=utc_now(),
        duration=0.01,
        outcome=AttemptOutcome.RESPONDED,
        status_code=200,
        reason=None,
    )
    return FinishedAttempt(
        delivery_id=claimed.id,
        endpoint_id=claimed.endpoint.id,
        lease_token=claimed.lease_token,
        attempt=attempt,
        transition=Transition.SUCCEED,
        due_at=None,
        spends_retry=False,
    )
