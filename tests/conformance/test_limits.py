"""An endpoint's limits hold over all workers: no more in flight, and no more a second, whatever they do and when."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest

from carehook.ledger.limits import TOLERANCE
from carehook.ledger.records import ClaimedDelivery
from carehook.ledger.states import EndpointStatus, Transition
from tests.conformance.store import LEASE, NOW, SECOND, Store, build_finished

MILLISECOND = timedelta(milliseconds=1)


async def finish(worker: Store, claimed: Sequence[ClaimedDelivery], now: datetime = NOW) -> None:
    assert all(await worker.queue.finish([build_finished(each) for each in claimed], now))


async def test_no_more_are_in_flight_than_the_limit(store: Store) -> None:
    await store.add_endpoints("ep_1", max_in_flight=3)
    await store.publish(*["ep_1"] * 10)
    first = await store.claim()
    assert len(first) == 3
    assert await store.claim() == []
    await finish(store, first[:2])
    assert len(await store.claim()) == 2


async def test_a_limit_leaves_its_neighbours_alone(store: Store) -> None:
    await store.add_endpoints("ep_1", max_in_flight=1)
    await store.add_endpoints("ep_2")
    await store.publish(*["ep_1", "ep_2"] * 10)
    assert len(await store.claim()) == 11


async def test_the_limit_holds_over_all_workers(store: Store) -> None:
    await store.add_endpoints("ep_1", max_in_flight=5)
    await store.publish(*["ep_1"] * 20)
    workers = [store, *[await store.second() for _ in range(3)]]
    claims = await asyncio.gather(*(each.claim(3) for each in workers * 2))
    assert sum(map(len, claims)) <= 5
    # Whoever met another at it comes back.
    later = NOW + SECOND
    rest = [await each.claim(3, now=later) for each in workers]
    assert sum(map(len, [*claims, *rest])) == 5


@pytest.mark.parametrize("ends", ["finish", "give_back", "recover"])
async def test_what_ends_in_flight_makes_room(store: Store, ends: str) -> None:
    await store.add_endpoints("ep_1", max_in_flight=2)
    await store.publish(*["ep_1"] * 5)
    claimed = await store.claim()
    if ends == "finish":
        await finish(store, claimed)
    elif ends == "give_back":
        await store.queue.give_back(claimed)
    else:
        assert await store.queue.recover_lost(NOW + LEASE) == 2
    assert len(await store.claim_known(now=NOW + LEASE)) == 2


async def test_what_was_paused_or_cancelled_in_flight_is_in_flight_still(store: Store) -> None:
    await store.add_endpoints("ep_1", max_in_flight=2)
    await store.publish(*["ep_1"] * 5)
    one, _ = await store.claim()
    async with store.ledger.transaction() as tx:
        await tx.deliveries.cancel(one.id, NOW)
    await store.set_status("ep_1", EndpointStatus.PAUSED)
    await store.set_status("ep_1", EndpointStatus.ACTIVE)
    assert await store.claim() == []
    await finish(store, [one])
    assert len(await store.claim()) == 1


async def test_a_limit_that_is_lowered_counts_what_is_out(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish(*["ep_1"] * 20)
    claimed = await store.claim(6)
    await store.change("ep_1", max_in_flight=4)
    assert await store.claim() == []
    await finish(store, claimed[:3])
    assert len(await store.claim()) == 1


async def test_a_limit_that_is_raised_or_taken_away_makes_room(store: Store) -> None:
    await store.add_endpoints("ep_1", max_in_flight=1)
    await store.publish(*["ep_1"] * 20)
    assert len(await store.claim()) == 1
    await store.change("ep_1", max_in_flight=3)
    assert len(await store.claim()) == 2
    await store.change("ep_1", max_in_flight=None)
    assert len(await store.claim()) == 17


async def test_a_claim_brings_the_limits_as_they_are(store: Store) -> None:
    await store.add_endpoints("ep_1", max_in_flight=7, rate_limit=100.0)
    await store.publish("ep_1")
    claimed = await store.claim_one()
    assert (claimed.endpoint.max_in_flight, claimed.endpoint.rate_limit) == (7, 100.0)
    assert claimed.endpoint == await store.endpoint("ep_1")


@pytest.mark.parametrize("seed", range(3))
async def test_no_interleaving_exceeds_the_limit(store: Store, seed: int) -> None:
    chance, now = random.Random(seed), NOW
    limits = {"ep_1": 3, "ep_2": 1}
    for endpoint_id, most in limits.items():
        await store.add_endpoints(endpoint_id, max_in_flight=most)
    left = set(await store.publish(*["ep_1", "ep_2"] * 40))
    workers = [store, await store.second()]
    held: list[ClaimedDelivery] = []

    async def claim(worker: Store) -> None:
        held.extend(await worker.claim(chance.randint(1, 8), now=now))

    def take_some() -> list[ClaimedDelivery]:
        chance.shuffle(held)
        return [held.pop() for _ in range(chance.randint(0, len(held)))]

    async def succeed(worker: Store) -> None:
        taken = take_some()
        await finish(worker, taken, now)
        left.difference_update(each.id for each in taken)

    async def fail(worker: Store) -> None:
        taken = take_some()
        results = [build_finished(each, Transition.RESCHEDULE, due_at=now, started_at=now) for each in taken[:1]]
        await worker.queue.finish(results, now)
        await worker.queue.give_back(taken[1:])

    for step in range(60):
        now += 20 * SECOND
        await asyncio.gather(*(claim(chance.choice(workers)) for _ in range(3)))
        counts = {each: sum(one.endpoint.id == each for one in held) for each in limits}
        assert all(counts[each] <= most for each, most in limits.items()), (step, counts)
        if chance.random() < 0.1:
            now += LEASE
            await chance.choice(workers).queue.recover_lost(now)
            held.clear()
        await chance.choice([succeed, succeed, succeed, fail])(chance.choice(workers))
    for _ in range(100):
        now += 300 * SECOND
        await store.queue.recover_lost(now)
        held[:] = await store.claim(now=now)
        left.difference_update(each.id for each in held)
        await finish(store, held, now)
    assert not left


async def run_at_rate(store: Store, workers: Sequence[Store], span: timedelta, step: timedelta) -> list[datetime]:
    """The instants at which something was leased, by workers that come one after another."""
    leases: list[datetime] = []
    now, turn = NOW, 0
    while now < NOW + span:
        worker = workers[turn % len(workers)]
        claimed = await worker.claim(now=now)
        leases += [now] * len(claimed)
        await finish(worker, claimed, now)
        now, turn = now + step, turn + 1
    return leases


def count_most_in(window: timedelta, leases: Sequence[datetime]) -> int:
    return max(sum(start <= each < start + window for each in leases) for start in leases)


async def test_a_rate_is_reached_and_never_exceeded_over_all_workers(store: Store) -> None:
    await store.add_endpoints("ep_1", rate_limit=20.0)
    await store.publish(*["ep_1"] * 100)
    leases = await run_at_rate(store, [store, await store.second()], 3 * SECOND, 33 * MILLISECOND)
    assert count_most_in(SECOND, leases) <= 20 * (1 + TOLERANCE.total_seconds()) + 1
    assert 3 * 20 - 1 <= len(leases) <= 3 * 20 + 3


async def test_a_slow_rate_lets_one_go_at_a_time(store: Store) -> None:
    await store.add_endpoints("ep_1", rate_limit=0.2)
    await store.publish(*["ep_1"] * 10)
    leases = await run_at_rate(store, [store], 20 * SECOND, SECOND)
    assert [(each - NOW).total_seconds() for each in leases] == [0, 5, 10, 15]


async def test_idle_time_saves_nothing_up(store: Store) -> None:
    await store.add_endpoints("ep_1", rate_limit=20.0)
    await store.publish("ep_1")
    await finish(store, await store.claim())
    await store.publish(*["ep_1"] * 50)
    assert len(await store.claim(now=NOW + 3600 * SECOND)) == 3


async def test_a_rate_survives_a_restart(store: Store) -> None:
    await store.add_endpoints("ep_1", rate_limit=1.0)
    await store.publish("ep_1", "ep_1")
    assert len(await store.claim()) == 1
    restarted = await store.second()
    assert await restarted.claim(now=NOW + SECOND / 2) == []
    assert len(await restarted.claim(now=NOW + SECOND)) == 1


async def test_a_rate_counts_what_was_leased_and_not_what_might_have_been(store: Store) -> None:
    await store.add_endpoints("ep_1", rate_limit=1.0)
    assert await store.claim() == []
    await store.publish("ep_1")
    assert len(await store.claim()) == 1


async def test_a_rate_that_is_raised_counts_at_once(store: Store) -> None:
    await store.add_endpoints("ep_1", rate_limit=0.01)
    await store.publish(*["ep_1"] * 10)
    assert len(await store.claim()) == 1
    await store.change("ep_1", rate_limit=20.0)
    assert len(await store.claim(now=NOW + SECOND)) == 3
    await store.change("ep_1", rate_limit=None)
    assert len(await store.claim(now=NOW + SECOND)) == 6


async def test_both_limits_hold_together(store: Store) -> None:
    await store.add_endpoints("ep_1", rate_limit=20.0, max_in_flight=2)
    await store.publish(*["ep_1"] * 30)
    first = await store.claim()
    assert len(first) == 2
    assert await store.claim(now=NOW + SECOND) == []
    await finish(store, first, NOW + SECOND)
    second = await store.claim(now=NOW + SECOND)
    assert len(second) == 2
    await finish(store, second, NOW + SECOND)
    assert len(await store.claim(now=NOW + SECOND)) == 1


async def test_a_limited_endpoint_is_claimed_as_soon_as_its_rate_lets_it(store: Store) -> None:
    await store.add_endpoints("ep_1", rate_limit=1000.0)
    await store.publish(*["ep_1"] * 300)
    now, leased = NOW, len(await store.claim(300))
    async with asyncio.timeout(60):
        while leased < 300:
            # Nobody else tells: the queue itself knows when to come back.
            await store.queue.wait(at_most=timedelta(hours=1))
            now += 30 * MILLISECOND
            leased += len(await store.claim_known(300, now=now))
    assert now - NOW >= 190 * MILLISECOND
