"""What is due is claimed: the longest waiting first, no endpoint more than its share, nothing twice."""

import asyncio
from collections import Counter
from datetime import timedelta

from carehook.ledger.sql.tables import lanes
from carehook.ledger.states import DeliveryState, EndpointStatus, Transition
from tests.conformance.store import LEASE, NOW, SECOND, Store


async def test_a_claim_brings_all_that_an_attempt_needs(store: Store) -> None:
    await store.add_endpoints("ep_1")
    [delivery_id] = await store.publish("ep_1", due_at=NOW - SECOND)
    claimed = await store.claim_one()
    assert (claimed.id, claimed.attempt_count, claimed.failure_count) == (delivery_id, 0, 0)
    assert (claimed.lease_until, claimed.accepted_at) == (NOW + LEASE, NOW - SECOND)
    assert claimed.event_id == (await store.delivery(delivery_id)).event_id
    assert (claimed.event_type, claimed.body) == ("patient_report_sent", b'{"type": "patient_report_sent"}')
    assert claimed.endpoint == await store.endpoint("ep_1")


async def test_a_lease_is_seen_in_the_delivery(store: Store) -> None:
    await store.add_endpoints("ep_1")
    [delivery_id] = await store.publish("ep_1")
    assert (await store.delivery(delivery_id)).lease_until is None
    await store.claim_one()
    assert (await store.delivery(delivery_id)).lease_until == NOW + LEASE


async def test_nothing_is_claimed_from_an_empty_store(store: Store) -> None:
    assert await store.claim() == []


async def test_what_is_leased_is_not_claimed_again(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish("ep_1")
    await store.claim_one()
    assert await store.claim() == []


async def test_what_is_due_later_is_left(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish("ep_1", due_at=NOW + SECOND)
    assert await store.claim(now=NOW) == []
    assert len(await store.claim(now=NOW + SECOND)) == 1


async def test_what_is_due_later_does_not_hide_what_is_due(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish("ep_1", due_at=NOW + SECOND)
    [due] = await store.publish("ep_1")
    assert [each.id for each in await store.claim()] == [due]


async def test_what_is_held_is_left(store: Store) -> None:
    await store.add_endpoints("ep_1", status=EndpointStatus.PAUSED)
    await store.publish("ep_1", state=DeliveryState.HELD)
    assert await store.claim() == []


async def test_an_endpoint_that_does_not_receive_is_left(store: Store) -> None:
    await store.add_endpoints("ep_1", status=EndpointStatus.PAUSED)
    await store.publish("ep_1")
    assert await store.claim() == []


async def test_no_more_than_the_limit(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish(*["ep_1"] * 5)
    assert len(await store.claim(3)) == 3
    assert len(await store.claim(3)) == 2


async def test_no_more_than_its_share_for_each_endpoint(store: Store) -> None:
    await store.add_endpoints("ep_1", "ep_2")
    await store.publish(*["ep_1"] * 5, "ep_2")
    claimed = await store.claim(per_endpoint=2)
    assert Counter(each.endpoint.id for each in claimed) == {"ep_1": 2, "ep_2": 1}


async def test_endpoints_to_pass_over_are_left_alone(store: Store) -> None:
    await store.add_endpoints("ep_1", "ep_2")
    await store.publish("ep_1", "ep_2")
    assert [each.endpoint.id for each in await store.claim(passing_over=["ep_1"])] == ["ep_2"]


async def test_the_first_due_of_an_endpoint_comes_first(store: Store) -> None:
    await store.add_endpoints("ep_1")
    [later] = await store.publish("ep_1")
    [earlier] = await store.publish("ep_1", due_at=NOW - SECOND)
    assert [each.id for each in await store.claim(1)] == [earlier]
    assert [each.id for each in await store.claim(1)] == [later]


async def test_a_claim_is_in_the_order_of_what_was_due(store: Store) -> None:
    await store.add_endpoints("ep_1", "ep_2")
    [second] = await store.publish("ep_1", due_at=NOW - SECOND)
    [first] = await store.publish("ep_2", due_at=NOW - 2 * SECOND)
    [third] = await store.publish("ep_1")
    assert [each.id for each in await store.claim()] == [first, second, third]


async def test_the_longest_waiting_endpoint_comes_first(store: Store) -> None:
    await store.add_endpoints("ep_1", "ep_2", "ep_3")
    for age, endpoint_id in ((1, "ep_1"), (3, "ep_2"), (2, "ep_3")):
        await store.publish(*[endpoint_id] * 3, due_at=NOW - age * SECOND)
    assert [each.endpoint.id for each in await store.claim(2)] == ["ep_2", "ep_3"]


async def test_a_long_backlog_leaves_room_for_its_neighbours(store: Store) -> None:
    await store.add_endpoints("ep_1", "ep_2")
    await store.publish(*["ep_1"] * 20, due_at=NOW - SECOND)
    await store.publish(*["ep_2"] * 20)
    assert Counter(each.endpoint.id for each in await store.claim(10)) == {"ep_1": 5, "ep_2": 5}


async def test_claims_go_round_when_there_are_more_endpoints_than_the_limit(store: Store) -> None:
    names = [f"ep_{number}" for number in range(5)]
    await store.add_endpoints(*names)
    for age, name in enumerate(reversed(names)):
        await store.publish(name, name, due_at=NOW - (10 - age) * SECOND)
        await store.publish(name, due_at=NOW - age * SECOND)
    found = [each.endpoint.id for _ in range(5) for each in await store.claim(3)]
    assert Counter(found) == dict.fromkeys(names, 3)
    assert len(set(found[:3])) == 3


async def test_two_claimers_never_get_the_same_delivery(store: Store) -> None:
    names = [f"ep_{number}" for number in range(4)]
    await store.add_endpoints(*names)
    ids = await store.publish(*names * 25)
    other = await store.second()

    async def claim_all(claimer: Store) -> list[str]:
        found: list[str] = []
        while claimed := await claimer.claim(7):
            found += [each.id for each in claimed]
        return found

    found = await asyncio.gather(claim_all(store), claim_all(other), claim_all(store))
    # A claimer that meets the others' locks goes home early; what it left is still there.
    rest = await claim_all(store)
    assert sorted(sum(found, rest)) == sorted(ids)


async def test_waiting_ends_when_something_became_due(store: Store) -> None:
    await store.add_endpoints("ep_1")
    assert await store.claim() == []
    waiting = asyncio.create_task(store.queue.wait(at_most=timedelta(hours=1)))
    await store.publish("ep_1")
    await waiting
    assert len(await store.claim()) == 1


async def test_waiting_does_not_begin_when_something_became_due_since_the_claim(store: Store) -> None:
    await store.add_endpoints("ep_1")
    assert await store.claim() == []
    await store.publish("ep_1")
    await store.queue.wait(at_most=timedelta(hours=1))
    assert len(await store.claim()) == 1


async def test_waiting_ends_by_itself(store: Store) -> None:
    await store.queue.wait(at_most=timedelta(milliseconds=1))
    assert await store.claim() == []


async def test_a_transaction_that_failed_wakes_nobody(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.claim()
    waiting = asyncio.create_task(store.queue.wait(at_most=timedelta(hours=1)))
    try:
        async with store.ledger.transaction() as tx:
            await tx.deliveries.recover("ep_1", NOW, NOW)
            raise RuntimeError("stop")
    except RuntimeError:
        await asyncio.sleep(0)
    assert not waiting.done()
    store.queue.wake()
    await waiting


async def test_the_backlog_counts_what_waits_what_is_in_flight_and_what_is_held(store: Store) -> None:
    await store.add_endpoints("ep_1", "ep_2")
    await store.publish("ep_1", "ep_1", due_at=NOW - SECOND)
    await store.claim(1)
    await store.publish("ep_2", "ep_2", state=DeliveryState.HELD)
    [done] = await store.publish("ep_2", due_at=NOW - 2 * SECOND)
    [exhausted] = await store.claim(1)
    assert await store.finish(exhausted, Transition.EXHAUST)
    assert await store.states(done) == [DeliveryState.EXHAUSTED]
    async with store.ledger.snapshot() as tx:
        backlog = await tx.deliveries.backlog()
    assert (backlog.waiting, backlog.in_flight, backlog.held) == (1, 1, 2)
    assert backlog.oldest_due_at == NOW - SECOND


async def test_what_waits_behind_an_open_circuit_is_not_what_is_behind(store: Store) -> None:
    await store.add_endpoints("ep_1", "ep_2")
    await store.publish("ep_1", due_at=NOW - 60 * SECOND)
    await store.publish("ep_2", due_at=NOW - SECOND)
    async with store.database.write() as connection:
        opened = lanes.update().where(lanes.c.endpoint_id == "ep_1").values(opened_at=NOW, probe_at=NOW + SECOND)
        await connection.execute(opened)
    async with store.ledger.snapshot() as tx:
        backlog = await tx.deliveries.backlog()
    assert (backlog.waiting, backlog.oldest_due_at) == (2, NOW - SECOND)
