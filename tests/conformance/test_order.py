"""Order per patient: only the earliest unfinished delivery of a patient goes, and a failing one holds back no other."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest

from carehook.ledger.records import ClaimedDelivery
from carehook.ledger.states import DeliveryState, EndpointStatus, Ordering, Transition
from tests.conformance.store import LEASE, NOW, SECOND, Store, build_endpoint, build_finished

LATER = NOW + timedelta(hours=2)


@pytest.fixture
async def ordered(store: Store) -> Store:
    """A store with an endpoint that asks for order per patient."""
    await store.add_endpoints("ep_1", ordering=Ordering.PATIENT)
    return store


async def claim_ids(store: Store, limit: int = 100, *, now: datetime = NOW) -> list[str]:
    return [each.id for each in await store.claim(limit, now=now)]


async def drain(store: Store, *, now: datetime = NOW) -> list[str]:
    """Claim and send everything that is due; the ids in the order in which they went."""
    sent: list[str] = []
    while claimed := await store.claim(now=now):
        sent += [each.id for each in claimed]
        assert all(await store.queue.finish([build_finished(each) for each in claimed], now))
    return sent


async def fail(store: Store, claimed: ClaimedDelivery, due_at: datetime = LATER) -> None:
    assert await store.finish(claimed, Transition.RESCHEDULE, due_at=due_at)


async def test_a_patients_deliveries_go_one_after_another_as_they_were_accepted(ordered: Store) -> None:
    ids = await ordered.accept(*["ep_1"] * 3, patient="ann")
    ids += await ordered.accept("ep_1", patient="ann")
    for delivery_id in ids:
        claimed = await ordered.claim_one()
        assert claimed.id == delivery_id
        assert await ordered.claim() == []
        assert await ordered.finish(claimed)
    assert await ordered.claim() == []


async def test_an_earlier_event_that_is_due_later_still_goes_first(ordered: Store) -> None:
    [first] = await ordered.accept("ep_1", patient="ann", now=NOW + SECOND)
    [second] = await ordered.accept("ep_1", patient="ann", now=NOW)
    assert await claim_ids(ordered) == []
    assert await drain(ordered, now=NOW + SECOND) == [first, second]


async def test_patients_and_events_about_none_do_not_wait_for_each_other(ordered: Store) -> None:
    [ann, _] = await ordered.accept("ep_1", "ep_1", patient="ann")
    [bob, _] = await ordered.accept("ep_1", "ep_1", patient="bob")
    nobody = await ordered.accept("ep_1", "ep_1")
    assert set(await claim_ids(ordered)) == {ann, bob, *nobody}


async def test_endpoints_do_not_wait_for_each_other(ordered: Store) -> None:
    await ordered.add_endpoints("ep_2", ordering=Ordering.PATIENT)
    await ordered.add_endpoints("ep_3")
    one, two, three, four = await ordered.accept("ep_1", "ep_2", "ep_3", "ep_3", patient="ann")
    await ordered.accept("ep_1", "ep_2", patient="ann")
    assert set(await claim_ids(ordered)) == {one, two, three, four}


async def test_a_failing_one_holds_back_that_patients_alone(ordered: Store) -> None:
    ann = await ordered.accept(*["ep_1"] * 3, patient="ann")
    bob = await ordered.accept(*["ep_1"] * 3, patient="bob")
    failing = {each.id: each for each in await ordered.claim()}
    await fail(ordered, failing[ann[0]])
    await ordered.finish(failing[bob[0]])
    assert await drain(ordered, now=LATER - SECOND) == bob[1:]
    assert await drain(ordered, now=LATER) == ann


@pytest.mark.parametrize("transition", [Transition.SUCCEED, Transition.EXHAUST])
async def test_one_that_is_over_lets_the_next_go(ordered: Store, transition: Transition) -> None:
    _, second = await ordered.accept("ep_1", "ep_1", patient="ann")
    assert await ordered.finish(await ordered.claim_one(), transition)
    assert await claim_ids(ordered) == [second]


async def test_one_that_is_cancelled_lets_the_next_go_at_once(ordered: Store) -> None:
    first, second, third = await ordered.accept("ep_1", "ep_1", "ep_1", patient="ann")
    await fail(ordered, await ordered.claim_one())
    assert await claim_ids(ordered) == []
    async with ordered.ledger.transaction() as tx:
        assert await tx.deliveries.cancel(first, NOW)
    assert await drain(ordered) == [second, third]


async def test_one_that_is_retried_early_lets_the_next_go_at_once(ordered: Store) -> None:
    ids = await ordered.accept(*["ep_1"] * 3, patient="ann")
    await fail(ordered, await ordered.claim_one())
    async with ordered.ledger.transaction() as tx:
        assert await tx.deliveries.retry(ids[0], NOW)
    assert await drain(ordered) == ids


async def test_a_recovery_lets_all_go_at_once(ordered: Store) -> None:
    ids = await ordered.accept(*["ep_1"] * 3, patient="ann")
    await fail(ordered, await ordered.claim_one())
    async with ordered.ledger.transaction() as tx:
        assert await tx.deliveries.recover("ep_1", NOW, NOW) == 1
    assert await drain(ordered) == ids


async def test_one_that_fails_after_it_was_cancelled_holds_back_nobody(ordered: Store) -> None:
    first, second = await ordered.accept("ep_1", "ep_1", patient="ann")
    claimed = await ordered.claim_one()
    async with ordered.ledger.transaction() as tx:
        assert await tx.deliveries.cancel(first, NOW)
    await fail(ordered, claimed)
    assert await claim_ids(ordered) == [second]


@pytest.mark.parametrize("ends", ["finish", "recover"])
async def test_one_that_is_cancelled_in_flight_holds_back_the_next_until_its_request_is_over(
    ordered: Store, ends: str
) -> None:
    first, second = await ordered.accept("ep_1", "ep_1", patient="ann")
    claimed = await ordered.claim_one()
    async with ordered.ledger.transaction() as tx:
        assert await tx.deliveries.cancel(first, NOW)
    assert await claim_ids(ordered) == []
    if ends == "finish":
        assert await ordered.finish(claimed)
    else:
        assert await ordered.queue.recover_lost(NOW + LEASE) == 1
    assert await claim_ids(ordered, now=NOW + LEASE) == [second]


async def test_the_next_goes_by_its_own_schedule_where_it_failed_itself(ordered: Store) -> None:
    first, second = await ordered.accept("ep_1", "ep_1", patient="ann")
    assert await ordered.finish(await ordered.claim_one())
    await fail(ordered, await ordered.claim_one())
    async with ordered.ledger.transaction() as tx:
        assert await tx.deliveries.resend([first], NOW) == 1
    assert await drain(ordered) == [first]
    assert await claim_ids(ordered, now=LATER - SECOND) == []
    assert await claim_ids(ordered, now=LATER) == [second]


async def test_a_lost_lease_keeps_the_order(ordered: Store) -> None:
    ids = await ordered.accept("ep_1", "ep_1", patient="ann")
    await ordered.claim_one()
    assert await claim_ids(ordered, now=NOW + LEASE) == []
    assert await ordered.queue.recover_lost(NOW + LEASE) == 1
    assert await drain(ordered, now=NOW + LEASE) == ids


async def test_what_is_given_back_keeps_the_order(ordered: Store) -> None:
    ids = await ordered.accept("ep_1", "ep_1", patient="ann")
    await ordered.queue.give_back([await ordered.claim_one()])
    assert await drain(ordered) == ids


@pytest.mark.parametrize("status", [EndpointStatus.PAUSED, EndpointStatus.DISABLED])
async def test_a_pause_keeps_the_order(ordered: Store, status: EndpointStatus) -> None:
    ids = await ordered.accept("ep_1", "ep_1", patient="ann")
    claimed = await ordered.claim_one()
    await ordered.set_status("ep_1", status)
    ids += await ordered.accept("ep_1", patient="ann")
    await fail(ordered, claimed, due_at=NOW)
    assert await claim_ids(ordered) == []
    await ordered.set_status("ep_1", EndpointStatus.ACTIVE)
    assert await drain(ordered) == ids


async def test_a_resent_one_comes_before_those_after_it(ordered: Store) -> None:
    first, second, third = await ordered.accept("ep_1", "ep_1", "ep_1", patient="ann")
    for _ in range(2):
        assert await ordered.finish(await ordered.claim_one())
    async with ordered.ledger.transaction() as tx:
        assert await tx.deliveries.resend([second, first], NOW) == 2
    assert await drain(ordered) == [first, second, third]


async def test_the_batches_of_several_publishers_and_workers_keep_the_order(ordered: Store) -> None:
    other = await ordered.second()
    chance = random.Random(5)
    accepted: defaultdict[str, list[str]] = defaultdict(list)

    async def publish(publisher: Store, patients: Sequence[str]) -> None:
        for _ in range(6):
            for patient in patients:
                size = chance.randint(1, 3)
                accepted[patient] += await publisher.accept(*["ep_1"] * size, patient=patient)

    await asyncio.gather(publish(ordered, ["ann", "bob"]), publish(other, ["eve"]))
    sent: list[str] = []
    in_flight: set[str] = set()
    patient_of = {each: patient for patient, ids in accepted.items() for each in ids}

    async def work(worker: Store) -> None:
        while len(sent) < len(patient_of):
            claimed = await worker.claim(5)
            patients = {patient_of[each.id] for each in claimed}
            assert len(patients) == len(claimed)
            assert not patients & in_flight
            in_flight.update(patients)
            sent.extend(each.id for each in claimed)
            await asyncio.sleep(0)
            in_flight.difference_update(patients)
            assert all(await worker.queue.finish([build_finished(each) for each in claimed], NOW))

    async with asyncio.timeout(60):
        await asyncio.gather(work(ordered), work(other))
    for patient, ids in accepted.items():
        assert [each for each in sent if patient_of[each] == patient] == ids


async def test_publishers_at_once_give_each_its_place(ordered: Store) -> None:
    other = await ordered.second()
    publishers = [ordered, other] * 10
    await asyncio.gather(*(each.accept("ep_1", "ep_1", patient="ann") for each in publishers))
    sent = []
    while claimed := await ordered.claim():
        assert len(claimed) == 1
        sent.append(claimed[0].id)
        assert await ordered.finish(claimed[0])
    assert len(sent) == len(set(sent)) == 40


async def test_switching_it_on_puts_the_backlog_in_order(store: Store) -> None:
    await store.add_endpoints("ep_1")
    ids = await store.accept("ep_1", patient="ann", now=NOW - 2 * SECOND)
    ids += await store.accept("ep_1", patient="ann", now=NOW - SECOND)
    [bob] = await store.accept("ep_1", patient="bob", now=NOW)
    [nobody] = await store.accept("ep_1", now=NOW)
    await store.change("ep_1", ordering=Ordering.PATIENT)
    ids += await store.accept("ep_1", patient="ann", now=NOW)
    claimed = await store.claim()
    assert {each.id for each in claimed} == {ids[0], bob, nobody}
    assert all(await store.queue.finish([build_finished(each) for each in claimed], NOW))
    assert await drain(store) == ids[1:]


async def test_switching_it_on_leaves_what_is_in_flight_or_over(store: Store) -> None:
    await store.add_endpoints("ep_1")
    first, second, third = await store.accept("ep_1", "ep_1", "ep_1", patient="ann")
    leased = {each.id: each for each in await store.claim()}
    assert await store.finish(leased[first])
    await store.queue.give_back([leased[third]])
    await store.change("ep_1", ordering=Ordering.PATIENT)
    assert await claim_ids(store) == []
    await store.finish(leased[second])
    assert await claim_ids(store) == [third]


async def test_switching_it_off_lets_the_whole_backlog_go(ordered: Store) -> None:
    ids = await ordered.accept(*["ep_1"] * 3, patient="ann")
    await fail(ordered, await ordered.claim_one())
    await ordered.change("ep_1", ordering=Ordering.NONE)
    ids += await ordered.accept("ep_1", patient="ann")
    assert set(await claim_ids(ordered)) == set(ids[1:])
    assert await claim_ids(ordered, now=LATER) == [ids[0]]


async def test_switching_it_off_and_on_again_keeps_what_was_resent_in_order(ordered: Store) -> None:
    old = await ordered.accept("ep_1", patient="ann")
    assert await drain(ordered) == old
    waiting = await ordered.accept("ep_1", "ep_1", patient="ann")
    await ordered.change("ep_1", ordering=Ordering.NONE)
    await ordered.change("ep_1", ordering=Ordering.PATIENT)
    async with ordered.ledger.transaction() as tx:
        assert await tx.deliveries.resend(old, NOW) == 1
    assert await ordered.finish(await ordered.claim_one())
    assert await ordered.states(*old, *waiting) == [DeliveryState.SUCCEEDED, *[DeliveryState.PENDING] * 2]
    assert await drain(ordered) == waiting


async def test_any_other_change_of_the_endpoint_leaves_the_order(ordered: Store) -> None:
    ids = await ordered.accept("ep_1", "ep_1", patient="ann")
    await ordered.change("ep_1", description="changed", rate_limit=1000.0)
    ids += await ordered.accept("ep_1", patient="ann")
    assert await claim_ids(ordered) == ids[:1]


async def test_an_organization_with_several_ordered_endpoints_is_in_order_at_each(ordered: Store) -> None:
    await ordered.add_endpoints("ep_2", "ep_3", ordering=Ordering.PATIENT)
    names = ["ep_1", "ep_2", "ep_3"]
    batches = [await ordered.accept(*names, patient="ann") for _ in range(3)]
    await fail(ordered, next(each for each in await ordered.claim() if each.endpoint.id == "ep_1"))
    await ordered.queue.recover_lost(NOW + LEASE)
    sent = await drain(ordered, now=NOW + LEASE)
    assert sorted(sent) == sorted(each for batch in batches for each in batch[1:])
    for place in (1, 2):
        assert [each for each in sent if each in {batch[place] for batch in batches}] == [
            batch[place] for batch in batches
        ]


async def test_two_organizations_have_nothing_to_do_with_each_other(ordered: Store) -> None:
    await ordered.add_organization("org_2")
    async with ordered.ledger.transaction() as tx:
        await tx.endpoints.add(build_endpoint("ep_9", organization_id="org_2", ordering=Ordering.PATIENT))
    first, _ = await ordered.accept("ep_1", "ep_1", patient="ann")
    [elsewhere] = await ordered.accept("ep_9", patient="ann", organization_id="org_2")
    assert set(await claim_ids(ordered)) == {first, elsewhere}


async def test_a_deep_backlog_of_a_failing_patient_does_not_hide_the_others(ordered: Store) -> None:
    deep = await ordered.accept(*["ep_1"] * 300, patient="ann", now=NOW - SECOND)
    await fail(ordered, await ordered.claim_one())
    # Each was looked at once, and is not again before it is its turn.
    assert {(await ordered.delivery(each)).due_at for each in deep[1:]} == {None}
    bob = await ordered.accept("ep_1", "ep_1", patient="bob")
    assert await claim_ids(ordered, 1) == bob[:1]
    assert await claim_ids(ordered, 1) == []


@pytest.mark.parametrize("transition", [Transition.SUCCEED, Transition.RESCHEDULE])
async def test_what_waits_in_the_order_can_be_cancelled(ordered: Store, transition: Transition) -> None:
    first, second, third = await ordered.accept("ep_1", "ep_1", "ep_1", patient="ann")
    claimed = await ordered.claim_one()
    async with ordered.ledger.transaction() as tx:
        assert await tx.deliveries.cancel(second, NOW)
    await ordered.finish(claimed, transition, due_at=LATER if transition is Transition.RESCHEDULE else None)
    rest = [third] if transition is Transition.SUCCEED else [first, third]
    assert await drain(ordered, now=LATER) == rest
    assert await ordered.states(second) == [DeliveryState.CANCELLED]
