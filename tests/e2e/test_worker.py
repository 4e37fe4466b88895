"""The worker among many endpoints: nobody is held up by a neighbour, no limit is broken, and it never spins."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from carehook.dispatch import worker as worker_module
from carehook.dispatch.window import AHEAD_AT_MOST, START
from carehook.dispatch.worker import POLL
from carehook.ledger.records import AttemptOutcome
from carehook.ledger.states import DeliveryState, EndpointStatus
from tests.e2e.dispatching import (
    GatedReceiver,
    Platform,
    StandingClock,
    Watch,
    eventually,
    make_settings,
    open_platform,
    open_worker,
    running,
    wait_for_waiting,
)
from tests.receivers import RecordingReceiver

# Neighbours.


async def test_an_endpoint_that_hangs_with_a_long_backlog_does_not_delay_the_others(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, concurrency=24, endpoint_concurrency=4)
    with GatedReceiver() as hanging, RecordingReceiver() as healthy:
        async with open_platform(settings) as platform:
            stuck = (await platform.register(hanging)).endpoint.id
            await platform.publish(500)
            sound = (await platform.register(healthy)).endpoint.id
            async with open_worker(settings) as worker, running(worker):
                await wait_for_waiting(hanging, 4)
                await platform.publish(200)
                await platform.wait_for(DeliveryState.SUCCEEDED, 200, sound)
                # All of them arrived while the requests that came first are still in flight.
                assert hanging.waiting == 4
                assert (await platform.count_states(stuck))[DeliveryState.PENDING] == 700
                assert hanging.most_at_once == 4
                hanging.open()
                await platform.wait_for(DeliveryState.SUCCEEDED, 700, stuck)
    assert hanging.most_at_once == 4
    assert len(hanging.requests) == 700


async def test_an_endpoint_that_fails_at_once_with_a_long_backlog_does_not_starve_the_others(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, concurrency=8, endpoint_concurrency=4)
    with ExitStack() as stack:
        failing = stack.enter_context(RecordingReceiver(then=500))
        healthy = [stack.enter_context(RecordingReceiver()) for _ in range(12)]
        async with open_platform(settings) as platform:
            await platform.register(failing)
            await platform.publish(300)
            for receiver in healthy:
                await platform.register(receiver)
            event_ids = await platform.publish(10)
            async with open_worker(settings) as worker, running(worker):
                await platform.wait_for(DeliveryState.SUCCEEDED, 120)
                for receiver in healthy:
                    assert sorted(each.headers["webhook-id"] for each in receiver.requests) == sorted(event_ids)


# Limits.


async def test_an_endpoint_reaches_its_limit_and_never_passes_it(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, concurrency=64, endpoint_concurrency=12)
    with GatedReceiver() as receiver:
        async with open_platform(settings) as platform:
            await platform.register(receiver)
            await platform.publish(200)
            async with open_worker(settings) as worker, running(worker):
                await wait_for_waiting(receiver, START)
                receiver.let_through(START)
                # Each answer lets one more begin, until there are as many as may be.
                await wait_for_waiting(receiver, 12)
                receiver.open()
                await platform.wait_for(DeliveryState.SUCCEEDED, 200)
    assert receiver.most_at_once == 12
    assert len(receiver.requests) == 200


async def test_endpoints_together_never_pass_the_limit_of_the_worker(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, concurrency=6, endpoint_concurrency=4)
    with ExitStack() as stack:
        receivers = [stack.enter_context(GatedReceiver()) for _ in range(9)]
        async with open_platform(settings) as platform:
            for receiver in receivers:
                await platform.register(receiver)
            await platform.publish(20)
            async with open_worker(settings) as worker, running(worker):

                async def full() -> bool:
                    return sum(receiver.waiting for receiver in receivers) >= 6

                await eventually(full, "6 requests at once")
                await asyncio.sleep(2 * POLL.total_seconds())
                assert sum(receiver.waiting for receiver in receivers) == 6
                for receiver in receivers:
                    receiver.open()
                await platform.wait_for(DeliveryState.SUCCEEDED, 180)
    assert [len(receiver.requests) for receiver in receivers] == [20] * 9


async def test_of_an_endpoint_that_has_not_answered_nothing_is_claimed_ahead(tmp_path: Path) -> None:
    settings, watch = make_settings(tmp_path), Watch()
    with GatedReceiver() as receiver:
        async with open_platform(settings) as platform:
            await platform.register(receiver)
            await platform.publish(100)
            async with open_worker(settings, wrap=watch) as worker, running(worker):
                await wait_for_waiting(receiver, START)
                await asyncio.sleep(2 * POLL.total_seconds())
                assert len(watch.queue.claimed) == START
                receiver.open()
                await platform.wait_for(DeliveryState.SUCCEEDED, 100)
    assert len(watch.queue.claimed) == len(set(watch.queue.claimed)) == 100


# Effort.


@pytest.mark.parametrize("kind", ["empty", "saturated", "due later", "held"])
async def test_a_worker_with_nothing_to_do_asks_the_store_seldom(tmp_path: Path, kind: str) -> None:
    settings, watch = make_settings(tmp_path, concurrency=4, endpoint_concurrency=2), Watch()
    with GatedReceiver(status=200) as receiver:
        async with open_platform(settings) as platform:
            endpoint_id = (await platform.register(receiver)).endpoint.id
            if kind == "held":
                await platform.application.endpoints.pause(endpoint_id)
            if kind == "due later":
                receiver.status = 500
                receiver.open()
            if kind != "empty":
                await platform.publish(5)
            async with open_worker(settings, wrap=watch) as worker, running(worker):
                if kind == "saturated":
                    await wait_for_waiting(receiver, 2)
                if kind == "due later":
                    await receiver.wait_for_requests(5)
                await asyncio.sleep(POLL.total_seconds())
                before = watch.queue.claims
                await asyncio.sleep(4 * POLL.total_seconds())
                # Fewer on a machine that is busy, never more.
                assert watch.queue.claims - before <= 5


@pytest.fixture
def no_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that go by wake-ups alone: one that is lost is never made good."""
    monkeypatch.setattr(worker_module, "POLL", timedelta(hours=1))


@pytest.mark.usefixtures("no_poll")
async def test_what_is_published_in_the_same_process_wakes_the_worker(tmp_path: Path) -> None:
    with RecordingReceiver() as receiver:
        async with open_platform(make_settings(tmp_path)) as platform, running(platform.application.worker):
            await platform.register(receiver)
            for count in range(1, 101):
                await platform.publish()
                await receiver.wait_for_requests(count)
    assert len(receiver.requests) == 100


@pytest.mark.usefixtures("no_poll")
async def test_resuming_and_retrying_wake_the_worker(tmp_path: Path) -> None:
    with RecordingReceiver(500) as receiver:
        async with open_platform(make_settings(tmp_path)) as platform, running(platform.application.worker):
            endpoint_id = (await platform.register(receiver)).endpoint.id
            await platform.publish()
            delivery = await platform.wait_for_attempts(1)
            await platform.application.interventions.retry(delivery.id)
            await platform.wait_for(DeliveryState.SUCCEEDED, 1)
            await platform.application.endpoints.pause(endpoint_id)
            await platform.publish()
            await platform.application.endpoints.resume(endpoint_id)
            await platform.wait_for(DeliveryState.SUCCEEDED, 2)
            assert await platform.application.interventions.resend(delivery.event_id) == 1
            await receiver.wait_for_requests(4)
    assert len(receiver.requests) == 4


@pytest.mark.usefixtures("no_poll")
@pytest.mark.parametrize(("concurrency", "endpoint_concurrency"), [(1, 1), (2, 1), (3, 2), (8, 8), (8, 64), (64, 3)])
async def test_a_backlog_is_worked_off_without_a_poll_whatever_the_limits(
    tmp_path: Path, concurrency: int, endpoint_concurrency: int
) -> None:
    settings = make_settings(tmp_path, concurrency=concurrency, endpoint_concurrency=endpoint_concurrency)
    with RecordingReceiver() as first, RecordingReceiver() as second:
        async with open_platform(settings) as platform:
            await platform.register(first)
            await platform.register(second)
            await platform.publish(70)
            async with open_worker(settings) as worker, running(worker):
                await platform.wait_for(DeliveryState.SUCCEEDED, 140)
    assert (len(first.requests), len(second.requests)) == (70, 70)


async def test_a_long_backlog_stays_in_the_store(tmp_path: Path) -> None:
    settings, watch = make_settings(tmp_path, concurrency=100, endpoint_concurrency=16), Watch()
    with GatedReceiver() as receiver:
        async with open_platform(settings) as platform:
            await platform.register(receiver)
            for _ in range(40):
                await platform.publish(500)
            async with open_worker(settings, wrap=watch) as worker:
                gc.collect()
                tracemalloc.start()
                try:
                    async with running(worker):
                        receiver.let_through(20)
                        await wait_for_waiting(receiver, 16)
                        gc.collect()
                        used, _ = tracemalloc.get_traced_memory()
                finally:
                    tracemalloc.stop()
    most = 20 + 16 + AHEAD_AT_MOST * 16
    assert 36 <= len(watch.queue.claimed) <= most, "those that were answered, those in flight, and some claimed ahead"
    # All 20,000 with their bodies would be ten times that.
    assert used < 3_000_000


async def test_a_worker_leaves_no_task_behind(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, concurrency=32, endpoint_concurrency=4)
    with RecordingReceiver() as receiver, GatedReceiver() as hanging:
        async with open_platform(settings) as platform:
            await platform.register(receiver)
            await platform.register(hanging)
            before = asyncio.all_tasks()
            async with open_worker(settings) as worker, running(worker):
                await platform.publish(50)
                await wait_for_waiting(hanging, 4)
            assert asyncio.all_tasks() == before


# A store that fails for a while.


async def test_an_error_of_the_store_while_claiming_is_waited_out(tmp_path: Path) -> None:
    settings, watch = make_settings(tmp_path), Watch()
    with RecordingReceiver() as receiver:
        async with open_platform(settings) as platform:
            await platform.register(receiver)
            async with open_worker(settings, wrap=watch) as worker:
                watch.queue.broken = 1
                await platform.publish(5)
                async with running(worker):
                    await platform.wait_for(DeliveryState.SUCCEEDED, 5)
    assert watch.queue.broken == 0
    assert len(receiver.requests) == 5


async def test_a_result_that_the_store_could_not_take_is_offered_again_and_nothing_is_sent_twice(
    tmp_path: Path,
) -> None:
    settings, watch = make_settings(tmp_path), Watch()
    with GatedReceiver() as receiver:
        async with open_platform(settings) as platform:
            await platform.register(receiver)
            await platform.publish(5)
            async with open_worker(settings, wrap=watch) as worker, running(worker):
                await wait_for_waiting(receiver, 5)
                # The batch, then each of it by itself.
                watch.queue.broken = 6
                receiver.open()
                await platform.wait_for(DeliveryState.SUCCEEDED, 5)
            deliveries = await platform.list_deliveries()
    assert watch.queue.broken == 0
    assert len(receiver.requests) == 5
    assert {delivery.attempt_count for delivery in deliveries} == {1}


# What people do while a request is in flight.


async def publish_in_flight(platform: Platform, receiver: GatedReceiver) -> str:
    """The id of a delivery whose request the receiver holds."""
    await platform.publish()
    await wait_for_waiting(receiver, 1)
    return (await platform.get_delivery()).id


@pytest.mark.parametrize("status", [200, 500])
async def test_an_endpoint_that_is_paused_meanwhile_keeps_the_result_and_gets_no_more(
    tmp_path: Path, status: int
) -> None:
    settings, clock = make_settings(tmp_path), StandingClock()
    with GatedReceiver(status) as receiver:
        async with open_platform(settings, clock) as platform, running(platform.application.worker):
            endpoint_id = (await platform.register(receiver)).endpoint.id
            await publish_in_flight(platform, receiver)
            await platform.application.endpoints.pause(endpoint_id)
            receiver.open()
            delivery = await platform.wait_for_attempts(1)
            assert delivery.state is (DeliveryState.SUCCEEDED if status == 200 else DeliveryState.HELD)
            assert not delivery.in_flight
            clock.advance(3600)
            receiver.status = 200
            await platform.application.endpoints.resume(endpoint_id)
            await platform.wait_for(DeliveryState.SUCCEEDED)
    assert len(receiver.requests) == (1 if status == 200 else 2)


@pytest.mark.parametrize("what", ["cancel", "delete"])
@pytest.mark.parametrize(
    ("status", "state"),
    [(200, DeliveryState.SUCCEEDED), (500, DeliveryState.CANCELLED), (410, DeliveryState.CANCELLED)],
)
async def test_what_is_cancelled_meanwhile_is_known_to_have_arrived_or_is_not_sent_again(
    tmp_path: Path, what: str, status: int, state: DeliveryState
) -> None:
    settings, clock = make_settings(tmp_path), StandingClock()
    with GatedReceiver(status) as receiver, RecordingReceiver() as other:
        async with open_platform(settings, clock) as platform, running(platform.application.worker):
            endpoint = (await platform.register(receiver)).endpoint
            delivery_id = await publish_in_flight(platform, receiver)
            if what == "cancel":
                await platform.application.interventions.cancel(delivery_id)
            else:
                assert (await platform.application.endpoints.delete(endpoint.id)).moved == 1
            receiver.open()
            delivery = await platform.wait_for_attempts(1)
            assert (delivery.state, delivery.in_flight, delivery.due_at) == (state, False, None)
            assert delivery.finished_at is not None
            clock.advance(1_000_000)
            sound = (await platform.register(other)).endpoint.id
            await platform.publish()
            await platform.wait_for(DeliveryState.SUCCEEDED, 1, sound)
            async with platform.application.ledger.snapshot() as snapshot:
                left = await snapshot.deliveries.get(delivery_id)
    assert left is not None
    assert (left.state, left.attempt_count) == (state, 1)
    sent_again = [each for each in receiver.requests if each.headers["webhook-id"] == delivery.event_id]
    assert len(sent_again) == 1


async def test_410_while_paused_leaves_the_endpoint_paused(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    with GatedReceiver(410) as receiver:
        async with open_platform(settings) as platform, running(platform.application.worker):
            endpoint_id = (await platform.register(receiver)).endpoint.id
            await publish_in_flight(platform, receiver)
            await platform.application.endpoints.pause(endpoint_id)
            receiver.open()
            delivery = await platform.wait_for_attempts(1)
            endpoint = await platform.application.insights.endpoint(endpoint_id)
    assert (delivery.state, delivery.attempts[0].status_code) == (DeliveryState.HELD, 410)
    assert (endpoint.status, endpoint.status_reason) == (EndpointStatus.PAUSED, None)


# A clock that jumps.


@pytest.mark.parametrize("hours", [-6, 6])
async def test_a_clock_that_jumps_while_a_request_is_in_flight_loses_nothing(tmp_path: Path, hours: int) -> None:
    settings, clock = make_settings(tmp_path), StandingClock()
    with GatedReceiver() as receiver:
        async with open_platform(settings, clock) as platform:
            await platform.register(receiver)
            async with open_worker(settings, clock=clock) as worker, running(worker):
                await publish_in_flight(platform, receiver)
                clock.advance(hours * 3600)
                receiver.open()
                await platform.wait_for(DeliveryState.SUCCEEDED)
                await platform.publish(3)
                await platform.wait_for(DeliveryState.SUCCEEDED, 4)
                deliveries = await platform.list_deliveries()
    for delivery in deliveries:
        assert [attempt.number for attempt in delivery.attempts] == list(range(1, delivery.attempt_count + 1))
        assert delivery.attempts[-1].outcome is AttemptOutcome.RESPONDED
    # Those that were published afterwards went out once each.
    assert [delivery.attempt_count for delivery in deliveries[1:]] == [1, 1, 1]
