"""What an endpoint's answers earn it, and what its silence costs it: on a real queue, with real receivers."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from carehook.dispatch.window import START
from carehook.ledger.records import AttemptOutcome
from carehook.ledger.states import DeliveryState
from tests.e2e.dispatching import (
    GatedReceiver,
    Watch,
    eventually,
    make_settings,
    open_platform,
    open_worker,
    running,
    wait_for_waiting,
)
from tests.receivers import RecordingReceiver

# Requests in these tests are given up after this many seconds.
SHORT = 0.3

CLOCKS_APART = 0.01
"""Instants and durations are by different clocks."""


async def test_an_endpoint_that_does_not_answer_is_left_with_one_request_at_a_time(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, concurrency=128, endpoint_concurrency=16)
    with GatedReceiver() as receiver:
        async with open_platform(settings) as platform:
            await platform.register(receiver)
            await platform.publish(40)
            async with open_worker(settings, request_limit=SHORT) as worker, running(worker):
                # So many failures open its circuit.
                await platform.wait_for_attempted(10)
            attempts = [attempt for each in await platform.list_deliveries() for attempt in each.attempts]
    first, last = sorted(attempts, key=lambda attempt: attempt.started_at)[-2:]
    assert {each.outcome for each in attempts} == {AttemptOutcome.UNREACHABLE}
    assert first.started_at + timedelta(seconds=first.duration_ms / 1000 - CLOCKS_APART) <= last.started_at


async def test_what_was_claimed_ahead_of_an_endpoint_that_stops_answering_goes_back_to_the_store(
    tmp_path: Path,
) -> None:
    settings, watch = make_settings(tmp_path, concurrency=128, endpoint_concurrency=START), Watch()
    with GatedReceiver() as receiver:
        async with open_platform(settings) as platform:
            await platform.register(receiver)
            await platform.publish()
            async with open_worker(settings, wrap=watch, request_limit=SHORT) as worker, running(worker):
                receiver.let_through(1)
                await platform.wait_for(DeliveryState.SUCCEEDED)
                await platform.publish(60)
                await wait_for_waiting(receiver, START)

                async def given_back() -> bool:
                    return len(watch.queue.given_back) >= START - 1

                await eventually(given_back, "what was claimed ahead is given back")
                receiver.open()
    assert set(watch.queue.given_back) <= set(watch.queue.claimed)
    assert not set(watch.queue.given_back) & set(watch.queue.finished[: START + 1])


async def test_an_error_is_an_answer_and_costs_no_window(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, concurrency=128, endpoint_concurrency=START)
    with GatedReceiver(404) as receiver:
        async with open_platform(settings) as platform:
            await platform.register(receiver)
            # Fewer failures than open a circuit.
            await platform.publish(4)
            async with open_worker(settings) as worker, running(worker):
                await wait_for_waiting(receiver, 4)
                receiver.let_through(4)
                await platform.wait_for_attempted(4)
                receiver.status = 200
                await platform.publish(START)
                await wait_for_waiting(receiver, START)
                receiver.open()
                await platform.wait_for(DeliveryState.SUCCEEDED, START)
    assert receiver.most_at_once == START


async def test_many_endpoints_that_hang_leave_a_worker_room_for_one_that_does_not(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, concurrency=64, endpoint_concurrency=16)
    with ExitStack() as stack:
        hanging = [stack.enter_context(GatedReceiver()) for _ in range(20)]
        healthy = stack.enter_context(RecordingReceiver())
        async with open_platform(settings) as platform:
            for receiver in hanging:
                await platform.register(receiver)
            await platform.publish(50)
            sound = (await platform.register(healthy)).endpoint.id
            async with open_worker(settings) as worker, running(worker):

                async def all_hang() -> bool:
                    return all(receiver.waiting for receiver in hanging)

                await eventually(all_hang, "each has a request that hangs")
                await asyncio.sleep(0.2)
                assert sum(receiver.waiting for receiver in hanging) <= 32, "half of the places"
                await platform.publish(100)
                await platform.wait_for(DeliveryState.SUCCEEDED, 100, sound)
                assert not any(receiver.disconnections for receiver in hanging), "none of them had been given up"
    assert len(healthy.requests) == 100
