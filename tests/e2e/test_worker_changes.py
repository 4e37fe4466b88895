"""What a worker has claimed ahead follows a change of its endpoint that another process makes. On each store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from carehook.config import Settings
from carehook.directory.endpoints import EndpointChanges
from carehook.dispatch import worker as worker_module
from carehook.ledger.states import DeliveryState, Ordering
from tests.e2e.dispatching import (
    GatedReceiver,
    Platform,
    StandingClock,
    Watch,
    WatchedQueue,
    eventually,
    make_settings,
    open_platform,
    open_worker,
    running,
    wait_for_waiting,
)
from tests.receivers import RecordingReceiver
from tests.servers.postgres import PostgresServer

IN_FLIGHT = AHEAD = 2
"""Of an endpoint that has answered once, with these settings."""

PUBLISHED = 10


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of an empty store, on each kind of database."""
    limits = {"concurrency": 8, "endpoint_concurrency": IN_FLIGHT}
    if request.param == "sqlite":
        return make_settings(tmp_path, **limits)
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name: str = request.getfixturevalue("postgres_database")
    return make_settings(tmp_path, database_url=SecretStr(server.url(name)), **limits)


@pytest.fixture
def slow() -> Iterator[GatedReceiver]:
    """The receiver that the endpoint has at first."""
    with GatedReceiver() as receiver:
        yield receiver


@dataclass
class Scene:
    """A worker with some requests in flight to a slow receiver and some claimed ahead; and another process."""

    platform: Platform
    endpoint_id: str
    queue: WatchedQueue

    @property
    def endpoints(self) -> Any:
        """What the other process changes endpoints with."""
        return self.platform.application.endpoints

    async def until_given_back(self) -> None:
        """Return once all that was claimed ahead is given back."""

        async def given_back() -> bool:
            return len(self.queue.given_back) >= AHEAD

        await eventually(given_back, "what was claimed ahead is given back")
        assert self.queue.given_back[:AHEAD] == self.queue.claimed[1 + IN_FLIGHT : 1 + IN_FLIGHT + AHEAD]


@asynccontextmanager
async def claimed_ahead(settings: Settings, slow: GatedReceiver) -> AsyncIterator[Scene]:
    """One delivery has succeeded, two requests are in flight, two more are claimed, and the rest is in the store.

    No lease ends, for the clock stands still.
    """
    clock = StandingClock()
    async with (
        open_platform(settings, clock) as platform,
        open_worker(settings, clock=clock, wrap=(watch := Watch())) as worker,
    ):
        endpoint_id = (await platform.register(slow)).endpoint.id
        async with running(worker):
            await platform.publish()
            slow.let_through(1)
            await platform.wait_for(DeliveryState.SUCCEEDED)
            await platform.publish(PUBLISHED)
            await wait_for_waiting(slow, IN_FLIGHT)

            async def is_claimed() -> bool:
                return len(watch.queue.claimed) == 1 + IN_FLIGHT + AHEAD

            await eventually(is_claimed, "two are claimed ahead")
            yield Scene(platform, endpoint_id, watch.queue)
            slow.open()


async def test_what_had_not_begun_when_its_url_changed_goes_to_the_new_one(
    settings: Settings, slow: GatedReceiver
) -> None:
    with RecordingReceiver() as other:
        async with claimed_ahead(settings, slow) as scene:
            await scene.endpoints.change(scene.endpoint_id, EndpointChanges(url=other.url))
            await scene.until_given_back()
            slow.open()
            await scene.platform.wait_for(DeliveryState.SUCCEEDED, 1 + PUBLISHED)
            deliveries = await scene.platform.list_deliveries()
    assert len(slow.requests) == 1 + IN_FLIGHT
    assert len(other.requests) == PUBLISHED - IN_FLIGHT
    assert [each.attempt_count for each in deliveries] == [1] * (1 + PUBLISHED)


async def test_what_had_not_begun_when_its_secret_was_replaced_is_signed_with_the_new_one(
    settings: Settings, slow: GatedReceiver
) -> None:
    async with claimed_ahead(settings, slow) as scene:
        changes = EndpointChanges(signature_value=SecretStr("the-new-value"))
        await scene.endpoints.change(scene.endpoint_id, changes)
        await scene.until_given_back()
        slow.open()
        await scene.platform.wait_for(DeliveryState.SUCCEEDED, 1 + PUBLISHED)
    values = [each.headers["x-webhook-signature"] for each in slow.requests]
    assert "the-new-value" not in values[: 1 + IN_FLIGHT]
    assert values[1 + IN_FLIGHT :] == ["the-new-value"] * (PUBLISHED - IN_FLIGHT)


STOPS: dict[str, tuple[Callable[[Scene], Awaitable[Any]], DeliveryState]] = {
    "paused": (lambda scene: scene.endpoints.pause(scene.endpoint_id), DeliveryState.HELD),
    "deleted": (lambda scene: scene.endpoints.delete(scene.endpoint_id), DeliveryState.CANCELLED),
}


async def test_one_that_was_cancelled_before_it_began_is_not_sent_and_the_others_are(
    settings: Settings, slow: GatedReceiver
) -> None:
    async with claimed_ahead(settings, slow) as scene:
        begun, ahead = scene.queue.claimed[1], scene.queue.claimed[1 + IN_FLIGHT]
        for each in (begun, ahead):
            await scene.platform.application.interventions.cancel(each)

        async def given_back() -> bool:
            return scene.queue.given_back == [ahead]

        await eventually(given_back, "the one that had not begun is given back")
        slow.open()
        await scene.platform.wait_for(DeliveryState.SUCCEEDED, PUBLISHED)
        deliveries = {each.id: each for each in await scene.platform.list_deliveries()}
    assert deliveries[begun].state is DeliveryState.SUCCEEDED, "what has begun goes on, and arrived"
    cancelled = deliveries.pop(ahead)
    assert (cancelled.state, cancelled.in_flight, cancelled.attempt_count) == (DeliveryState.CANCELLED, False, 0)
    assert [each.attempt_count for each in deliveries.values()] == [1] * PUBLISHED
    assert len(slow.requests) == PUBLISHED


async def test_the_next_of_a_patient_goes_in_the_place_of_one_that_was_cancelled_before_it_began(
    settings: Settings, slow: GatedReceiver
) -> None:
    """Of one patient are all that a second endpoint gets, while the only request that there may be is in flight."""
    narrow, clock = settings.model_copy(update={"concurrency": 1, "endpoint_concurrency": 1}), StandingClock()
    with RecordingReceiver() as receiver:
        async with (
            open_platform(narrow, clock) as platform,
            open_worker(narrow, clock=clock, wrap=(watch := Watch())) as worker,
        ):
            await platform.register(slow)
            await platform.publish()
            async with running(worker):
                await wait_for_waiting(slow, 1)
                endpoint_id = (await platform.register(receiver, ordering=Ordering.PATIENT)).endpoint.id
                await platform.publish(3)
                first, *_ = ids = [each.id for each in await platform.list_deliveries(endpoint_id)]

                async def claimed(delivery_id: str) -> bool:
                    return watch.queue.claimed[-1] == delivery_id

                await eventually(lambda: claimed(first), "the first waits")
                await platform.application.interventions.cancel(first)
                await eventually(lambda: claimed(ids[1]), "the next waits in its place")
                slow.open()
                await platform.wait_for(DeliveryState.SUCCEEDED, 2, endpoint_id)
                assert watch.queue.given_back == [first]
    assert len(receiver.requests) == 2


@pytest.mark.parametrize("name", STOPS)
async def test_what_had_not_begun_when_its_endpoint_was_stopped_is_not_sent(
    settings: Settings, slow: GatedReceiver, name: str
) -> None:
    stop, state = STOPS[name]
    async with claimed_ahead(settings, slow) as scene:
        await stop(scene)
        await scene.until_given_back()
        slow.open()
        await scene.platform.wait_for(DeliveryState.SUCCEEDED, 1 + IN_FLIGHT)
        await scene.platform.wait_for(state, PUBLISHED - IN_FLIGHT)
        deliveries = await scene.platform.list_deliveries()
    assert not any(each.in_flight for each in deliveries)
    assert len(slow.requests) == 1 + IN_FLIGHT


async def test_the_places_of_what_is_given_back_are_for_others_though_no_request_ends(
    settings: Settings, slow: GatedReceiver
) -> None:
    narrow, clock = settings.model_copy(update={"concurrency": 2, "endpoint_concurrency": 1}), StandingClock()
    async with (
        open_platform(narrow, clock) as platform,
        open_worker(narrow, clock=clock, wrap=(watch := Watch())) as worker,
    ):
        for _ in range(6):
            await platform.register(slow)
        await platform.publish()
        endpoints = {each.id: each.endpoint_id for each in await platform.list_deliveries()}

        async def claimed(count: int) -> bool:
            return len(watch.queue.claimed) == count

        async with running(worker):
            await wait_for_waiting(slow, 2)
            await eventually(lambda: claimed(4), "two are in flight and two wait")
            for delivery_id in watch.queue.claimed[2:]:
                await platform.application.endpoints.pause(endpoints[delivery_id])
            await eventually(lambda: claimed(6), "two others wait in their places")
            assert sorted(watch.queue.given_back) == sorted(watch.queue.claimed[2:4])
            assert slow.waiting == 2
            slow.open()
            await platform.wait_for(DeliveryState.SUCCEEDED, 4)


async def test_while_the_store_does_not_say_how_an_endpoint_is_nothing_begins_that_was_claimed_long_ago(
    settings: Settings, slow: GatedReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with capture_logs() as logs:
        async with claimed_ahead(settings, slow) as scene:
            scene.queue.cannot_check = True
            scene.queue.may_claim.clear()
            # From now on whatever is known was known for too long.
            monkeypatch.setattr(worker_module, "TRUSTED_SECONDS", 0.0)
            slow.open()
            await scene.platform.wait_for(DeliveryState.SUCCEEDED, 1 + IN_FLIGHT)
            checks = scene.queue.checks

            async def asked_again() -> bool:
                return scene.queue.checks >= checks + 2

            await eventually(asked_again, "the store is asked again and again")
            assert len(slow.requests) == 1 + IN_FLIGHT
            assert scene.queue.given_back == []
            monkeypatch.undo()
            scene.queue.cannot_check = False
            await slow.wait_for_requests(1 + IN_FLIGHT + AHEAD)
            scene.queue.may_claim.set()
            await scene.platform.wait_for(DeliveryState.SUCCEEDED, 1 + PUBLISHED)
    told = [each for each in logs if each["event"] == "deliveries_not_confirmed"]
    assert told
    assert {(each["log_level"], each["reason"]) for each in told} == {("error", "the database does not answer")}
    assert len(slow.requests) == 1 + PUBLISHED
