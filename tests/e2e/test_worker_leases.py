"""Leases: what a worker that is late, stopped or dead leaves behind. On each store, between processes that share it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from carehook.config import Settings
from carehook.directory.endpoints import EndpointChanges
from carehook.dispatch.delivery import ATTEMPT_LIMIT, STOPPED
from carehook.dispatch.worker import LEASE
from carehook.insights import DeliveryDetailView
from carehook.ledger.records import AttemptOutcome
from carehook.ledger.sql.finishing import LOST_LEASE
from carehook.ledger.states import DeliveryState
from tests.e2e.dispatching import (
    GatedReceiver,
    Platform,
    StandingClock,
    Watch,
    eventually,
    make_settings,
    open_platform,
    open_queue,
    open_worker,
    running,
    wait_for_waiting,
)
from tests.receivers import RecordingReceiver
from tests.servers.postgres import PostgresServer

LONG = timedelta(seconds=30)
"""For a drain that no test waits for to the end."""

INTERRUPTED, RESPONDED = AttemptOutcome.INTERRUPTED, AttemptOutcome.RESPONDED


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of an empty store, on each kind of database."""
    limits = {"concurrency": 8, "endpoint_concurrency": 2}
    if request.param == "sqlite":
        return make_settings(tmp_path, **limits)
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name: str = request.getfixturevalue("postgres_database")
    return make_settings(tmp_path, database_url=SecretStr(server.url(name)), **limits)


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock()


def check_numbers(deliveries: Sequence[DeliveryDetailView]) -> None:
    """Attempts are numbered from 1 without gaps, and their number is the one that the delivery has."""
    for delivery in deliveries:
        assert [attempt.number for attempt in delivery.attempts] == list(range(1, delivery.attempt_count + 1))


async def abandon_claims(settings: Settings, clock: StandingClock, limit: int) -> int:
    """Claim as a worker that then dies; how many deliveries."""
    async with open_queue(settings) as queue:
        claimed = await queue.claim(limit, room=lambda _: limit, now=clock(), lease=LEASE)
    return len(claimed)


async def prove(platform: Platform, receiver: GatedReceiver) -> None:
    """Let an endpoint answer its first request: of one that has not, nothing is claimed ahead."""
    await platform.publish()
    receiver.let_through(1)
    await platform.wait_for(DeliveryState.SUCCEEDED)


# Workers side by side.


async def test_two_workers_on_one_store_send_everything_once(settings: Settings) -> None:
    with RecordingReceiver() as first, RecordingReceiver() as second:
        one, two = Watch(), Watch()
        async with (
            open_platform(settings) as platform,
            open_worker(settings, wrap=one, drain=LONG) as worker,
            open_worker(settings, wrap=two, drain=LONG) as other,
        ):
            await platform.register(first)
            await platform.register(second)
            event_ids = await platform.publish(200)
            async with running(worker), running(other):
                await platform.wait_for(DeliveryState.SUCCEEDED, 400)
            check_numbers(await platform.list_deliveries())
    for receiver in (first, second):
        assert sorted(each.headers["webhook-id"] for each in receiver.requests) == sorted(event_ids)
    assert one.queue.claimed
    assert two.queue.claimed
    assert not set(one.queue.claimed) & set(two.queue.claimed)


async def test_a_result_that_comes_after_another_worker_took_over_does_not_count(
    settings: Settings, clock: StandingClock
) -> None:
    with GatedReceiver(500) as slow, GatedReceiver() as healthy:
        async with (
            open_platform(settings, clock) as platform,
            open_worker(settings, clock=clock, drain=LONG) as late,
            open_worker(settings, clock=clock, drain=LONG) as other,
            open_queue(settings) as queue,
        ):
            endpoint_id = (await platform.register(slow)).endpoint.id
            await platform.publish()
            working = asyncio.create_task(late.run())
            await wait_for_waiting(slow, 1)
            clock.advance(LEASE.total_seconds() + 1)
            assert await queue.recover_lost(clock()) == 1
            assert await queue.recover_lost(clock()) == 0
            late.stop()
            await platform.application.endpoints.change(endpoint_id, EndpointChanges(url=healthy.url))
            async with running(other):
                await wait_for_waiting(healthy, 1)
                with capture_logs() as logs:
                    slow.open()
                    await working
                troubles = [each["event"] for each in logs if each["log_level"] in ("warning", "error")]
                assert troubles == ["result_came_after_its_lease"]
                meanwhile = await platform.get_delivery()
                assert (meanwhile.state, meanwhile.in_flight) == (DeliveryState.PENDING, True)
                healthy.open()
                await platform.wait_for(DeliveryState.SUCCEEDED)
            delivery = await platform.get_delivery()
    assert [(each.number, each.outcome, each.reason) for each in delivery.attempts] == [
        (1, INTERRUPTED, LOST_LEASE),
        (2, RESPONDED, None),
    ]


async def test_what_a_dead_worker_had_claimed_is_sent_when_its_lease_is_over_and_not_before(
    settings: Settings, clock: StandingClock
) -> None:
    with RecordingReceiver() as receiver:
        async with open_platform(settings, clock) as platform:
            await platform.register(receiver)
            await platform.publish(10)
            assert await abandon_claims(settings, clock, 6) == 6
            clock.advance(LEASE.total_seconds() - 1)
            async with open_worker(settings, clock=clock) as worker, running(worker):
                await platform.wait_for(DeliveryState.SUCCEEDED, 4)
            assert len(receiver.requests) == 4
            clock.advance(1)
            async with open_worker(settings, clock=clock) as worker, running(worker):
                await platform.wait_for(DeliveryState.SUCCEEDED, 10)
            deliveries = await platform.list_deliveries()
    check_numbers(deliveries)
    assert len(receiver.requests) == 10
    assert Counter(tuple(each.outcome for each in delivery.attempts) for delivery in deliveries) == {
        (RESPONDED,): 4,
        (INTERRUPTED, RESPONDED): 6,
    }


async def test_leases_that_were_lost_are_counted_by_who_finds_them(settings: Settings, clock: StandingClock) -> None:
    with RecordingReceiver() as receiver:
        async with open_platform(settings, clock) as platform:
            await platform.register(receiver)
            await platform.publish(3)
            assert await abandon_claims(settings, clock, 2) == 2
            clock.advance(LEASE.total_seconds())
            async with running(platform.application.worker):
                await platform.wait_for(DeliveryState.SUCCEEDED, 3)
            find = platform.application.metrics.registry.get_sample_value
            assert find("carehook_leases_lost_total") == 2
            assert find("carehook_attempts_total", {"outcome": "succeeded"}) == 3
            assert find("carehook_attempts_total", {"outcome": "interrupted"}) is None


async def test_interruptions_spend_none_of_the_schedule(settings: Settings, clock: StandingClock) -> None:
    schedule = settings.model_copy(update={"retry_schedule": (5.0, 300.0)})
    with RecordingReceiver(then=500) as receiver:
        async with open_platform(schedule, clock) as platform:
            await platform.register(receiver)
            await platform.publish()
            for _ in range(4):
                await abandon_claims(schedule, clock, 1)
                clock.advance(LEASE.total_seconds())
                async with open_queue(schedule) as queue:
                    assert await queue.recover_lost(clock()) == 1
            async with open_worker(schedule, clock=clock) as worker, running(worker):
                for attempt in (5, 6, 7):
                    await platform.wait_for_attempts(attempt)
                    clock.advance(1000)
                await platform.wait_for(DeliveryState.EXHAUSTED)
            delivery = await platform.get_delivery()
    check_numbers([delivery])
    assert [each.outcome for each in delivery.attempts] == [INTERRUPTED] * 4 + [RESPONDED] * 3
    assert len(receiver.requests) == 3


@pytest.mark.parametrize(("what", "state"), [("pause", DeliveryState.HELD), ("cancel", DeliveryState.CANCELLED)])
async def test_a_lost_lease_leaves_the_state_as_people_have_set_it(
    settings: Settings, clock: StandingClock, what: str, state: DeliveryState
) -> None:
    with RecordingReceiver() as receiver:
        async with open_platform(settings, clock) as platform:
            endpoint_id = (await platform.register(receiver)).endpoint.id
            await platform.publish()
            await abandon_claims(settings, clock, 1)
            if what == "pause":
                await platform.application.endpoints.pause(endpoint_id)
            else:
                await platform.application.interventions.cancel((await platform.get_delivery()).id)
            clock.advance(LEASE.total_seconds())
            async with open_worker(settings, clock=clock) as worker, running(worker):
                delivery = await platform.wait_for_attempts(1)
                assert (delivery.state, delivery.in_flight) == (state, False)
                if what == "pause":
                    await platform.application.endpoints.resume(endpoint_id)
                    await platform.wait_for(DeliveryState.SUCCEEDED)
    assert len(receiver.requests) == (1 if what == "pause" else 0)


async def test_an_old_claim_that_still_waits_does_not_take_the_place_of_the_new_one(
    settings: Settings, clock: StandingClock
) -> None:
    """Both claims of one delivery wait in one process, behind endpoints that have all that may be in flight."""
    narrow = settings.model_copy(update={"concurrency": 2})
    with GatedReceiver() as hanging, RecordingReceiver() as receiver:
        async with (
            open_platform(narrow, clock) as platform,
            open_worker(narrow, clock=clock, wrap=(watch := Watch()), drain=LONG) as worker,
            open_queue(narrow) as queue,
        ):
            stuck = [(await platform.register(hanging)).endpoint.id for _ in range(2)]
            await platform.publish()
            async with running(worker):
                await wait_for_waiting(hanging, 2)
                for each in stuck:
                    await platform.application.endpoints.pause(each)
                endpoint_id = (await platform.register(receiver)).endpoint.id
                await platform.publish()

                async def claimed(count: int) -> bool:
                    return len(watch.queue.claimed) == count

                await eventually(lambda: claimed(3), "one waits behind two in flight")
                watch.queue.may_end_leases.clear()
                clock.advance(LEASE.total_seconds())
                recovered = await queue.recover_lost(clock())
                watch.queue.may_end_leases.set()
                assert recovered == 3
                await eventually(lambda: claimed(4), "the same one is claimed anew")
                assert watch.queue.claimed[2] == watch.queue.claimed[3]
                hanging.open()
                await platform.wait_for(DeliveryState.SUCCEEDED, 1, endpoint_id)
            delivery = await platform.get_delivery(endpoint_id)
    assert [each.outcome for each in delivery.attempts] == [INTERRUPTED, RESPONDED]
    assert len(receiver.requests) == 1


async def test_a_claim_that_waited_too_long_is_begun_anew_under_a_new_lease(
    settings: Settings, clock: StandingClock
) -> None:
    narrow = settings.model_copy(update={"concurrency": 2, "endpoint_concurrency": 1})
    with GatedReceiver() as receiver:
        async with (
            open_platform(narrow, clock) as platform,
            open_worker(narrow, clock=clock, wrap=(watch := Watch())) as worker,
            open_queue(narrow) as queue,
        ):
            await platform.register(receiver)
            async with running(worker):
                await prove(platform, receiver)
                await platform.publish(2)
                await wait_for_waiting(receiver, 1)

                async def both_claimed() -> bool:
                    return len(watch.queue.claimed) == 3

                await eventually(both_claimed, "one in flight and one claimed ahead")
                watch.queue.may_end_leases.clear()
                clock.advance(LEASE.total_seconds())
                recovered = await queue.recover_lost(clock())
                watch.queue.may_end_leases.set()
                assert recovered == 2
                receiver.open()
                await platform.wait_for(DeliveryState.SUCCEEDED, 3)
            proof, *deliveries = await platform.list_deliveries()
    check_numbers(deliveries)
    assert [[each.outcome for each in delivery.attempts] for delivery in deliveries] == [[INTERRUPTED, RESPONDED]] * 2
    # The first was in flight when its lease was lost; the second never was, so it came once.
    assert Counter(each.headers["webhook-id"] for each in receiver.requests) == {
        proof.event_id: 1,
        deliveries[0].event_id: 2,
        deliveries[1].event_id: 1,
    }


async def test_what_could_outlast_its_lease_is_not_begun_but_claimed_anew(
    settings: Settings, clock: StandingClock
) -> None:
    narrow = settings.model_copy(update={"concurrency": 2, "endpoint_concurrency": 1})
    with GatedReceiver() as receiver:
        async with (
            open_platform(narrow, clock) as platform,
            open_worker(narrow, clock=clock, wrap=(watch := Watch())) as worker,
        ):
            await platform.register(receiver)
            async with running(worker):
                await prove(platform, receiver)
                await platform.publish(2)

                async def both_claimed() -> bool:
                    return receiver.waiting == 1 and len(watch.queue.claimed) == 3

                await eventually(both_claimed, "one in flight and one claimed ahead")
                # The lease has not ended, but there is less left of it than an attempt may take.
                clock.advance((LEASE - ATTEMPT_LIMIT).total_seconds() + 1)
                receiver.open()
                await platform.wait_for(DeliveryState.SUCCEEDED, 3)
            deliveries = await platform.list_deliveries()
    assert watch.queue.given_back == [deliveries[-1].id]
    assert watch.queue.claimed.count(deliveries[-1].id) == 2
    assert {delivery.attempt_count for delivery in deliveries} == {1}
    assert len(receiver.requests) == 3


# Stopping.


async def begin(platform: Platform, receiver: GatedReceiver, watch: Watch) -> None:
    """Eleven deliveries: one succeeded, two in flight, two claimed ahead, six in the store."""
    await platform.register(receiver)
    await prove(platform, receiver)
    await platform.publish(10)
    await wait_for_waiting(receiver, 2)

    async def claimed_ahead() -> bool:
        return len(watch.queue.claimed) == 5

    await eventually(claimed_ahead, "two claimed ahead")


async def test_a_stop_gives_back_what_was_not_begun_at_once_and_lets_requests_in_flight_end(settings: Settings) -> None:
    with GatedReceiver() as receiver:
        async with (
            open_platform(settings) as platform,
            open_worker(settings, wrap=(watch := Watch()), drain=LONG) as worker,
        ):
            async with running(worker):
                await begin(platform, receiver, watch)
                claims = watch.queue.claims
                worker.stop()

                async def given_back() -> bool:
                    return sum(each.in_flight for each in await platform.list_deliveries()) == 2

                await eventually(given_back, "what was not begun is free")
                assert receiver.waiting == 2
                assert len(watch.queue.finished) == 1
                await platform.publish()
                receiver.open()
            deliveries = await platform.list_deliveries()
            assert watch.queue.claims == claims
    assert Counter((each.state, each.in_flight, each.attempt_count) for each in deliveries) == {
        (DeliveryState.SUCCEEDED, False, 1): 3,
        (DeliveryState.PENDING, False, 0): 9,
    }
    assert len(receiver.requests) == 3


async def test_requests_that_do_not_end_in_time_are_recorded_as_interrupted_and_sent_again(
    settings: Settings, clock: StandingClock
) -> None:
    with GatedReceiver() as receiver:
        async with open_platform(settings, clock) as platform:
            async with open_worker(settings, clock=clock, wrap=(watch := Watch())) as worker, running(worker):
                await begin(platform, receiver, watch)
            _, *deliveries = await platform.list_deliveries()
            assert Counter((each.state, each.in_flight, each.attempt_count) for each in deliveries) == {
                (DeliveryState.PENDING, False, 1): 2,
                (DeliveryState.PENDING, False, 0): 8,
            }
            assert {(each.outcome, each.reason) for found in deliveries for each in found.attempts} == {
                (INTERRUPTED, STOPPED)
            }
            receiver.open()
            clock.advance(6)
            async with open_worker(settings, clock=clock) as worker, running(worker):
                await platform.wait_for(DeliveryState.SUCCEEDED, 11)
            check_numbers(await platform.list_deliveries())
    assert len(receiver.requests) == 13


async def test_a_result_that_waits_to_be_recorded_when_the_drain_runs_out_is_kept(settings: Settings) -> None:
    with RecordingReceiver() as receiver:
        async with open_platform(settings) as platform, open_worker(settings, wrap=(watch := Watch())) as worker:
            await platform.register(receiver)
            await platform.publish(2)
            watch.queue.may_finish.clear()
            working = asyncio.create_task(worker.run())
            await receiver.wait_for_requests(2)
            worker.stop()
            # Longer than the drain: the store comes back only afterwards.
            await asyncio.sleep(0.6)
            assert not working.done()
            watch.queue.may_finish.set()
            await working
            assert await platform.count_states() == {DeliveryState.SUCCEEDED: 2}
    assert len(receiver.requests) == 2


async def test_a_claim_that_comes_back_after_the_stop_is_given_back(settings: Settings) -> None:
    with RecordingReceiver() as receiver:
        async with open_platform(settings) as platform, open_worker(settings, wrap=(watch := Watch())) as worker:
            await platform.register(receiver)
            await platform.publish(3)
            watch.queue.may_claim.clear()
            working = asyncio.create_task(worker.run())

            async def claiming() -> bool:
                return watch.queue.claims == 1

            await eventually(claiming, "a claim is under way")
            with capture_logs() as logs:
                worker.stop()
                watch.queue.may_claim.set()
                await working
            deliveries = await platform.list_deliveries()
    assert [each for each in logs if each["log_level"] == "error"] == []
    assert watch.queue.claimed
    assert sorted(watch.queue.given_back) == sorted(watch.queue.claimed)
    assert [(each.in_flight, each.attempt_count) for each in deliveries] == [(False, 0)] * 3
    assert receiver.connections == 0


async def test_a_worker_whose_task_is_cancelled_drains_as_well(settings: Settings) -> None:
    with GatedReceiver() as receiver:
        async with open_platform(settings) as platform, open_worker(settings, wrap=(watch := Watch())) as worker:
            working = asyncio.create_task(worker.run())
            await begin(platform, receiver, watch)
            working.cancel()
            with pytest.raises(asyncio.CancelledError):
                await working
            _, *deliveries = await platform.list_deliveries()
    assert not any(each.in_flight for each in deliveries)
    assert sum(each.attempt_count for each in deliveries) == 2


async def test_a_worker_that_was_stopped_before_it_ran_claims_nothing(settings: Settings) -> None:
    with RecordingReceiver() as receiver:
        async with open_platform(settings) as platform, open_worker(settings, wrap=(watch := Watch())) as worker:
            await platform.register(receiver)
            await platform.publish(3)
            worker.stop()
            await worker.run()
    assert watch.queue.claims == 0
    assert receiver.connections == 0
