"""What the support team does to deliveries, with a worker that does the sending."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import pytest
from pydantic import SecretStr

from carehook.config import Settings
from carehook.directory.organizations import NewOrganization
from carehook.dispatch import delivery as delivery_module
from carehook.ids import DELIVERY, ENDPOINT, EVENT, new_id
from carehook.ledger.states import DeliveryState
from carehook.refusals import Conflict, Invalid, NotFound
from tests.e2e.dispatching import (
    GatedReceiver,
    Platform,
    StandingClock,
    eventually,
    make_settings,
    open_platform,
    running,
    wait_for_waiting,
)
from tests.receivers import RecordingReceiver
from tests.servers.postgres import PostgresServer


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock()


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of an empty store, on each kind of database. Two retries."""
    if request.param == "sqlite":
        return make_settings(tmp_path, retry_schedule=(5.0, 300.0))
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name: str = request.getfixturevalue("postgres_database")
    return make_settings(tmp_path, retry_schedule=(5.0, 300.0), database_url=SecretStr(server.url(name)))


@pytest.fixture
async def platform(settings: Settings, clock: StandingClock) -> AsyncIterator[Platform]:
    """Carehook at work, with a clock that stands still."""
    async with open_platform(settings, clock) as platform, running(platform.application.worker):
        yield platform


async def exhaust(platform: Platform, clock: StandingClock) -> str:
    """The id of the one delivery, after its whole schedule."""
    for attempt in (1, 2):
        await platform.wait_for_attempts(attempt)
        clock.advance(3600)
    await platform.wait_for(DeliveryState.EXHAUSTED)
    return (await platform.get_delivery()).id


# Retry.


async def test_a_retry_is_sent_now_and_begins_the_schedule_anew(platform: Platform, clock: StandingClock) -> None:
    with RecordingReceiver(then=500) as receiver:
        await platform.register(receiver)
        await platform.publish()
        delivery_id = await exhaust(platform, clock)
        await platform.application.interventions.retry(delivery_id)
        delivery = await platform.wait_for_attempts(4)
        assert delivery.state is DeliveryState.PENDING
        assert delivery.due_at is not None
        assert delivery.due_at <= clock() + timedelta(seconds=6)
        clock.advance(3600)
        await platform.wait_for_attempts(5)
        clock.advance(3600)
        await platform.wait_for(DeliveryState.EXHAUSTED)
        delivery = await platform.get_delivery()
    assert [attempt.number for attempt in delivery.attempts] == [1, 2, 3, 4, 5, 6]
    assert {each.headers["webhook-id"] for each in receiver.requests} == {delivery.event_id}


async def test_a_retry_does_not_wait_for_the_time_that_was_set(platform: Platform) -> None:
    with RecordingReceiver(500) as receiver:
        await platform.register(receiver)
        await platform.publish()
        await platform.application.interventions.retry((await platform.wait_for_attempts(1)).id)
        await platform.wait_for(DeliveryState.SUCCEEDED)
    assert len(receiver.requests) == 2


async def test_what_cannot_be_retried_says_what_to_do(platform: Platform) -> None:
    interventions = platform.application.interventions
    with pytest.raises(NotFound):
        await interventions.retry(new_id(DELIVERY))
    with RecordingReceiver() as receiver:
        endpoint_id = (await platform.register(receiver)).endpoint.id
        await platform.publish()
        await platform.wait_for(DeliveryState.SUCCEEDED)
        delivery_id = (await platform.get_delivery()).id
        with pytest.raises(Conflict, match=r"The delivery is succeeded. To send the event again, resend it."):
            await interventions.retry(delivery_id)
        await platform.application.endpoints.pause(endpoint_id)
        await platform.publish()
        held = next(each.id for each in await platform.list_deliveries() if each.state is DeliveryState.HELD)
        with pytest.raises(Conflict, match=r"The endpoint is paused. Resume it first."):
            await interventions.retry(held)
        await platform.application.endpoints.delete(endpoint_id)
        with pytest.raises(NotFound):
            await interventions.retry(held)
    assert len(receiver.requests) == 1


async def test_nothing_that_is_in_flight_is_sent_a_second_time(platform: Platform) -> None:
    interventions = platform.application.interventions
    with GatedReceiver() as receiver:
        endpoint = (await platform.register(receiver)).endpoint
        await platform.publish()
        await wait_for_waiting(receiver, 1)
        delivery = await platform.get_delivery()
        with pytest.raises(Conflict, match=r"A request of this delivery is in flight. Wait for its outcome."):
            await interventions.retry(delivery.id)
        assert await interventions.resend(delivery.event_id) == 0
        assert await interventions.resend(delivery.event_id, endpoint.id) == 0
        assert await interventions.recover(endpoint.id, delivery.created_at - timedelta(days=1)) == 0
        receiver.open()
        await platform.wait_for(DeliveryState.SUCCEEDED)
    assert len(receiver.requests) == 1


# Cancel.


async def test_what_is_cancelled_is_not_sent_until_somebody_asks_again(
    platform: Platform, clock: StandingClock
) -> None:
    interventions = platform.application.interventions
    with RecordingReceiver(500) as receiver:
        await platform.register(receiver)
        await platform.publish()
        delivery = await platform.wait_for_attempts(1)
        await interventions.cancel(delivery.id)
        cancelled = await platform.get_delivery()
        assert (cancelled.state, cancelled.due_at, cancelled.finished_at) == (DeliveryState.CANCELLED, None, clock())
        with pytest.raises(Conflict, match=r"The delivery is cancelled already."):
            await interventions.cancel(delivery.id)
        with pytest.raises(NotFound):
            await interventions.cancel(new_id(DELIVERY))
        clock.advance(100_000)
        await platform.publish()
        await platform.wait_for(DeliveryState.SUCCEEDED)
        assert len(receiver.requests) == 2
        await interventions.retry(delivery.id)
        await platform.wait_for(DeliveryState.SUCCEEDED, 2)
    assert len(receiver.requests) == 3


# Resend.


async def test_an_event_that_arrived_is_sent_again_under_the_same_id_to_those_that_are_still_there(
    platform: Platform,
) -> None:
    with RecordingReceiver() as first, RecordingReceiver() as second, RecordingReceiver() as newer:
        await platform.register(first)
        gone = (await platform.register(second)).endpoint.id
        (event_id,) = await platform.publish()
        await platform.wait_for(DeliveryState.SUCCEEDED, 2)
        await platform.application.endpoints.delete(gone)
        await platform.register(newer)
        assert await platform.application.interventions.resend(event_id) == 1
        await first.wait_for_requests(2)
    assert first.requests[0].body == first.requests[1].body
    assert {each.headers["webhook-id"] for each in first.requests} == {event_id}
    assert (len(second.requests), len(newer.requests)) == (1, 0)


async def test_an_event_is_sent_to_an_endpoint_that_is_newer_than_it(platform: Platform) -> None:
    (event_id,) = await platform.publish()
    with RecordingReceiver() as receiver:
        endpoint_id = (await platform.register(receiver)).endpoint.id
        # Two who ask at once make one delivery.
        made = await asyncio.gather(
            *(platform.application.interventions.resend(event_id, endpoint_id) for _ in range(4))
        )
        assert set(made) <= {0, 1}
        await platform.wait_for(DeliveryState.SUCCEEDED)
    assert {each.headers["webhook-id"] for each in receiver.requests} == {event_id}
    assert (await platform.get_delivery()).endpoint_id == endpoint_id


async def test_what_is_resent_to_a_paused_endpoint_waits_for_it(platform: Platform) -> None:
    with RecordingReceiver() as receiver:
        endpoint_id = (await platform.register(receiver)).endpoint.id
        (event_id,) = await platform.publish()
        await platform.wait_for(DeliveryState.SUCCEEDED)
        await platform.application.endpoints.pause(endpoint_id)
        assert await platform.application.interventions.resend(event_id) == 1
        assert await platform.count_states() == {DeliveryState.HELD: 1}
        assert len(receiver.requests) == 1
        await platform.application.endpoints.resume(endpoint_id)
        await platform.wait_for(DeliveryState.SUCCEEDED)
    assert len(receiver.requests) == 2


async def test_an_event_is_never_sent_to_whom_it_is_not_for(platform: Platform) -> None:
    interventions, application = platform.application.interventions, platform.application
    (event_id,) = await platform.publish()
    stranger = Platform(application, (await application.organizations.create(NewOrganization(name="Another"))).id)
    with RecordingReceiver() as receiver:
        foreign = (await stranger.register(receiver)).endpoint.id
        unsubscribed = (await platform.register(receiver, event_types=("patient_consultation_finished",))).endpoint.id
        for endpoint_id in (foreign, new_id(ENDPOINT)):
            with pytest.raises(Invalid, match="names no endpoint of the event's organization"):
                await interventions.resend(event_id, endpoint_id)
        with pytest.raises(Invalid, match="not subscribed to patient_report_sent"):
            await interventions.resend(event_id, unsubscribed)
        with pytest.raises(NotFound):
            await interventions.resend(new_id(EVENT))
        assert await interventions.resend(event_id) == 0
        assert await platform.list_deliveries() == await stranger.list_deliveries() == []
    assert receiver.connections == 0


async def test_an_interruption_after_a_resend_does_not_wait_longer_than_for_the_second_retry(
    platform: Platform, clock: StandingClock
) -> None:
    """However many attempts there were before: their number has nothing to do with this sending."""
    with RecordingReceiver(then=500) as receiver:
        await platform.register(receiver)
        await platform.publish()
        await exhaust(platform, clock)
        with patch.object(delivery_module, "build_request", side_effect=RuntimeError("a bug of ours")):
            await platform.application.interventions.resend((await platform.get_delivery()).event_id)
            delivery = await platform.wait_for_attempts(4)
    assert delivery.due_at is not None
    assert clock() < delivery.due_at <= clock() + timedelta(seconds=360)


# Recover.


async def test_what_failed_since_an_instant_is_sent_again_and_nothing_older(
    platform: Platform, clock: StandingClock
) -> None:
    with RecordingReceiver(then=500) as receiver:
        endpoint_id = (await platform.register(receiver)).endpoint.id
        await platform.publish()
        await exhaust(platform, clock)
        clock.advance(3600)
        since = clock()
        await platform.publish(3)
        await receiver.wait_for_requests(6)

        async def all_recorded() -> bool:
            return sum(each.attempt_count for each in await platform.list_deliveries()) == 6

        await eventually(all_recorded, "six attempts")
        receiver.then = 200
        assert await platform.application.interventions.recover(endpoint_id, since) == 3
        await platform.wait_for(DeliveryState.SUCCEEDED, 3)
        assert (await platform.count_states())[DeliveryState.EXHAUSTED] == 1
        assert await platform.application.interventions.recover(endpoint_id, since) == 0
        assert await platform.application.interventions.recover(endpoint_id, since - timedelta(days=9)) == 1
        await platform.wait_for(DeliveryState.SUCCEEDED, 4)
        with pytest.raises(NotFound):
            await platform.application.interventions.recover(new_id(ENDPOINT), since)
        await platform.application.endpoints.pause(endpoint_id)
        with pytest.raises(Conflict, match=r"The endpoint is paused. Resume it first."):
            await platform.application.interventions.recover(endpoint_id, since)
