"""A result counts once, under the lease it was claimed with, and moves its delivery along the table of transitions."""

from dataclasses import replace

import pytest
import sqlalchemy as sa

from carehook.ledger.records import AttemptOutcome
from carehook.ledger.sql.tables import deliveries
from carehook.ledger.states import TRANSITIONS, DeliveryState, EndpointStatus, Transition, is_final
from tests.conformance.store import LEASE, NOW, SECOND, Store, build_finished

RESULTS = (Transition.SUCCEED, Transition.RESCHEDULE, Transition.EXHAUST)
LATER = NOW + 60 * SECOND


async def move_while_in_flight(store: Store, delivery_id: str, state: DeliveryState) -> None:
    """Bring a leased delivery into one of the states that it can have under lease."""
    if state == DeliveryState.HELD:
        await store.set_status("ep_1", EndpointStatus.PAUSED)
    elif state == DeliveryState.CANCELLED:
        async with store.ledger.transaction() as tx:
            await tx.deliveries.cancel(delivery_id, NOW)


@pytest.mark.parametrize("before", [DeliveryState.PENDING, DeliveryState.HELD, DeliveryState.CANCELLED])
@pytest.mark.parametrize("transition", RESULTS)
async def test_a_result_is_applied_to_the_state_it_finds(
    store: Store, before: DeliveryState, transition: Transition
) -> None:
    await store.add_endpoints("ep_1")
    [delivery_id] = await store.publish("ep_1")
    claimed = await store.claim_one()
    await move_while_in_flight(store, delivery_id, before)
    assert await store.finish(claimed, transition, due_at=LATER if transition == Transition.RESCHEDULE else None)
    delivery = await store.delivery(delivery_id)
    after = TRANSITIONS[before][transition]
    assert delivery.state == after
    assert delivery.lease_until is None
    assert delivery.due_at == (None if is_final(after) else LATER)
    assert delivery.finished_at == (NOW + SECOND if is_final(after) else None)
    assert (delivery.attempt_count, delivery.last_attempt_at) == (1, NOW)
    assert delivery.failure_count == (0 if transition == Transition.SUCCEED else 1)


async def test_an_attempt_is_kept_as_it_was(store: Store) -> None:
    await store.add_endpoints("ep_1")
    [delivery_id] = await store.publish("ep_1")
    finished = build_finished(await store.claim_one(), Transition.RESCHEDULE, due_at=LATER)
    await store.queue.finish([finished], NOW)
    assert await store.attempts(delivery_id) == [finished.attempt]


async def test_attempts_are_listed_first_to_last(store: Store) -> None:
    await store.add_endpoints("ep_1")
    [delivery_id] = await store.publish("ep_1")
    for _ in range(3):
        assert await store.finish(await store.claim_one(), Transition.RESCHEDULE, due_at=NOW)
    assert [each.number for each in await store.attempts(delivery_id)] == [1, 2, 3]


async def test_a_rescheduled_delivery_is_due_when_it_was_told(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish("ep_1")
    await store.finish(await store.claim_one(), Transition.RESCHEDULE, due_at=LATER)
    assert await store.claim(now=LATER - SECOND) == []
    claimed = await store.claim_one(now=LATER)
    assert (claimed.attempt_count, claimed.failure_count) == (1, 1)


async def test_a_failure_that_is_not_the_receivers_spends_no_retry(store: Store) -> None:
    await store.add_endpoints("ep_1")
    [delivery_id] = await store.publish("ep_1")
    await store.finish(await store.claim_one(), Transition.RESCHEDULE, due_at=LATER, spends_retry=False)
    delivery = await store.delivery(delivery_id)
    assert (delivery.attempt_count, delivery.failure_count) == (1, 0)


async def test_a_result_given_again_does_not_count(store: Store) -> None:
    await store.add_endpoints("ep_1")
    [delivery_id] = await store.publish("ep_1")
    claimed = await store.claim_one()
    assert await store.finish(claimed, Transition.RESCHEDULE, due_at=LATER)
    assert not await store.finish(claimed, Transition.EXHAUST)
    assert await store.states(delivery_id) == [DeliveryState.PENDING]
    assert len(await store.attempts(delivery_id)) == 1


async def test_a_result_given_twice_at_once_counts_once(store: Store) -> None:
    await store.add_endpoints("ep_1")
    [delivery_id] = await store.publish("ep_1")
    claimed = await store.claim_one()
    twice = [build_finished(claimed), build_finished(claimed)]
    assert await store.queue.finish(twice, NOW) == [True, False]
    assert len(await store.attempts(delivery_id)) == 1


async def test_a_late_result_does_not_count_once_the_lease_was_recovered(store: Store) -> None:
    await store.add_endpoints("ep_1")
    [delivery_id] = await store.publish("ep_1")
    claimed = await store.claim_one()
    await store.queue.recover_lost(NOW + LEASE)
    assert not await store.finish(claimed)
    assert await store.states(delivery_id) == [DeliveryState.PENDING]


async def test_a_late_result_does_not_end_the_lease_of_another_worker(store: Store) -> None:
    await store.add_endpoints("ep_1")
    [delivery_id] = await store.publish("ep_1")
    lost = await store.claim_one()
    await store.queue.recover_lost(NOW + LEASE)
    reclaimed = await store.claim_one()
    assert not await store.finish(lost, Transition.EXHAUST)
    assert (await store.delivery(delivery_id)).lease_until == NOW + LEASE
    assert await store.finish(reclaimed)
    assert await store.states(delivery_id) == [DeliveryState.SUCCEEDED]


async def test_of_a_late_and_a_timely_result_in_one_batch_the_timely_counts(store: Store) -> None:
    await store.add_endpoints("ep_1")
    [delivery_id] = await store.publish("ep_1")
    lost = await store.claim_one()
    await store.queue.recover_lost(NOW + LEASE)
    reclaimed = await store.claim_one()
    both = [build_finished(lost, Transition.EXHAUST), build_finished(reclaimed)]
    assert await store.queue.finish(both, NOW) == [False, True]
    # The one that is on record already is told as recorded, and is not recorded again.
    assert await store.queue.finish(both[::-1], NOW) == [True, False]
    assert await store.states(delivery_id) == [DeliveryState.SUCCEEDED]
    assert len(await store.attempts(delivery_id)) == 2


async def test_a_result_counts_while_nobody_has_taken_the_lease_that_ran_out(store: Store) -> None:
    await store.add_endpoints("ep_1")
    [delivery_id] = await store.publish("ep_1")
    claimed = await store.claim_one()
    assert await store.queue.finish([build_finished(claimed)], NOW + 2 * LEASE) == [True]
    assert await store.states(delivery_id) == [DeliveryState.SUCCEEDED]


async def test_results_of_a_batch_count_each_for_itself(store: Store) -> None:
    await store.add_endpoints("ep_1", "ep_2")
    ids = await store.publish("ep_1", "ep_2", "ep_1")
    claimed = sorted(await store.claim(), key=lambda each: ids.index(each.id))
    await store.finish(claimed[1])
    finished = [
        build_finished(claimed[0]),
        build_finished(claimed[1]),
        build_finished(claimed[2], Transition.EXHAUST),
    ]
    assert await store.queue.finish(finished, NOW) == [True, False, True]
    assert await store.states(*ids) == [DeliveryState.SUCCEEDED, DeliveryState.SUCCEEDED, DeliveryState.EXHAUSTED]


async def test_a_result_can_disable_the_endpoint_and_hold_its_other_deliveries(store: Store) -> None:
    await store.add_endpoints("ep_1", "ep_2")
    gone, waiting, in_flight, elsewhere = await store.publish("ep_1", "ep_1", "ep_1", "ep_2")
    leased = {each.id: each for each in await store.claim()}
    await store.queue.give_back([leased[waiting], leased[elsewhere]])
    assert await store.finish(leased[gone], Transition.EXHAUST, disable_reason="410 Gone")
    endpoint = await store.endpoint("ep_1")
    assert (endpoint.status, endpoint.status_reason) == (EndpointStatus.DISABLED, "410 Gone")
    assert endpoint.updated_at == NOW + SECOND
    await store.settle("ep_1")
    held = DeliveryState.HELD
    assert await store.states(gone, waiting, in_flight) == [DeliveryState.EXHAUSTED, held, held]
    assert await store.states(elsewhere) == [DeliveryState.PENDING]
    assert await store.finish(leased[in_flight])
    assert await store.states(in_flight) == [DeliveryState.SUCCEEDED]


async def test_a_rescheduled_delivery_of_an_endpoint_it_disables_is_held(store: Store) -> None:
    await store.add_endpoints("ep_1")
    [delivery_id] = await store.publish("ep_1")
    await store.finish(await store.claim_one(), Transition.RESCHEDULE, due_at=LATER, disable_reason="410 Gone")
    await store.settle("ep_1")
    assert await store.states(delivery_id) == [DeliveryState.HELD]


@pytest.mark.parametrize("status", [EndpointStatus.PAUSED, EndpointStatus.DISABLED])
async def test_an_endpoint_that_somebody_stopped_keeps_their_reason(store: Store, status: EndpointStatus) -> None:
    await store.add_endpoints("ep_1")
    await store.publish("ep_1")
    claimed = await store.claim_one()
    await store.set_status("ep_1", status)
    assert await store.finish(claimed, Transition.EXHAUST, disable_reason="410 Gone")
    endpoint = await store.endpoint("ep_1")
    assert (endpoint.status, endpoint.status_reason) == (status, None)


async def test_a_result_that_does_not_count_disables_nothing(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish("ep_1")
    claimed = await store.claim_one()
    await store.queue.recover_lost(NOW + LEASE)
    assert not await store.finish(claimed, Transition.EXHAUST, disable_reason="410 Gone")
    assert (await store.endpoint("ep_1")).status == EndpointStatus.ACTIVE


async def test_what_is_given_back_is_due_as_before(store: Store) -> None:
    await store.add_endpoints("ep_1")
    [delivery_id] = await store.publish("ep_1")
    before = await store.delivery(delivery_id)
    await store.queue.give_back([await store.claim_one()])
    assert await store.delivery(delivery_id) == before
    assert (await store.claim_one()).attempt_count == 0


async def test_giving_back_does_not_end_the_lease_of_another_worker(store: Store) -> None:
    await store.add_endpoints("ep_1")
    [delivery_id] = await store.publish("ep_1")
    lost = await store.claim_one()
    await store.queue.recover_lost(NOW + LEASE)
    await store.claim_one()
    await store.queue.give_back([lost])
    assert (await store.delivery(delivery_id)).lease_until is not None


async def test_giving_back_nothing_is_allowed(store: Store) -> None:
    await store.queue.give_back([])
    assert await store.claim() == []


async def test_a_lease_that_ran_out_leaves_an_interrupted_attempt_and_costs_no_retry(store: Store) -> None:
    await store.add_endpoints("ep_1")
    [delivery_id] = await store.publish("ep_1")
    await store.finish(await store.claim_one(), Transition.RESCHEDULE, due_at=NOW)
    await store.claim_one(now=NOW + SECOND)
    assert await store.queue.recover_lost(NOW + 10 * LEASE) == 1
    delivery = await store.delivery(delivery_id)
    assert (delivery.state, delivery.due_at, delivery.lease_until) == (DeliveryState.PENDING, NOW, None)
    assert (delivery.attempt_count, delivery.failure_count) == (2, 1)
    assert delivery.last_attempt_at == NOW + SECOND
    interrupted = (await store.attempts(delivery_id))[1]
    assert (interrupted.number, interrupted.outcome) == (2, AttemptOutcome.INTERRUPTED)
    assert (interrupted.started_at, interrupted.duration) == (NOW + SECOND, LEASE.total_seconds())
    assert "may have got it" in str(interrupted.reason)


async def test_a_recovered_delivery_is_claimed_and_numbered_on(store: Store) -> None:
    await store.add_endpoints("ep_1")
    [delivery_id] = await store.publish("ep_1")
    await store.claim_one()
    await store.queue.recover_lost(NOW + LEASE)
    assert await store.finish(await store.claim_one())
    assert [each.number for each in await store.attempts(delivery_id)] == [1, 2]


async def test_a_lease_that_holds_is_not_recovered(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish("ep_1")
    await store.claim_one()
    assert await store.queue.recover_lost(NOW + LEASE - SECOND) == 0
    assert await store.claim() == []


async def test_a_recovered_delivery_stays_held_or_cancelled(store: Store) -> None:
    await store.add_endpoints("ep_1", "ep_2")
    held, cancelled = await store.publish("ep_1", "ep_2")
    await store.claim()
    await store.set_status("ep_1", EndpointStatus.PAUSED)
    async with store.ledger.transaction() as tx:
        await tx.deliveries.cancel(cancelled, NOW)
    assert await store.queue.recover_lost(NOW + LEASE) == 2
    assert await store.states(held, cancelled) == [DeliveryState.HELD, DeliveryState.CANCELLED]


async def test_any_number_of_lost_leases_is_recovered(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish(*["ep_1"] * 2001)
    await store.claim(3000, per_endpoint=3000)
    assert await store.queue.recover_lost(NOW + LEASE) == 2001
    assert len(await store.claim(3000, per_endpoint=3000)) == 2001


async def test_a_result_of_an_unknown_kind_of_state_keeps_it(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish("ep_1", "ep_1")
    poison, fine = await store.claim()
    async with store.database.write() as connection:
        await connection.execute(
            sa.text("UPDATE deliveries SET state = 'succeeded' WHERE id = :id").bindparams(id=poison.id)
        )
    results = [build_finished(poison, Transition.EXHAUST), build_finished(fine)]
    assert await store.queue.finish(results, NOW + SECOND) == [True, True]
    assert await store.states(poison.id, fine.id) == [DeliveryState.SUCCEEDED, DeliveryState.SUCCEEDED]


async def test_an_interrupted_attempt_can_disable_its_endpoint(store: Store) -> None:
    """As where the endpoint's secrets do not open: nothing failed there, but nothing can be sent."""
    await store.add_endpoints("ep_1")
    ids = await store.publish("ep_1", "ep_1")
    [claimed, *_] = await store.claim(1)
    result = build_finished(claimed, Transition.RESCHEDULE, due_at=NOW, spends_retry=False, disable_reason="no secrets")
    interrupted = replace(result, attempt=replace(result.attempt, outcome=AttemptOutcome.INTERRUPTED))
    assert await store.queue.finish([interrupted], NOW + SECOND) == [True]
    endpoint = await store.endpoint("ep_1")
    assert (endpoint.status, endpoint.status_reason) == (EndpointStatus.DISABLED, "no secrets")
    await store.settle("ep_1")
    assert await store.states(*ids) == [DeliveryState.HELD, DeliveryState.HELD]
    assert await store.claim() == []


async def test_a_lost_lease_that_another_transaction_has_locked_keeps_no_other_waiting(postgresql_store: Store) -> None:
    store = postgresql_store
    await store.add_endpoints("ep_1")
    locked, free = await store.publish("ep_1", "ep_1")
    assert len(await store.claim()) == 2
    async with store.database.write() as connection:
        query = sa.select(deliveries.c.id).where(deliveries.c.id == locked).with_for_update()
        assert (await connection.execute(query)).scalar_one() == locked
        assert await store.queue.recover_lost(NOW + LEASE) == 1
        assert (await store.delivery(free)).lease_until is None
    assert await store.queue.recover_lost(NOW + LEASE) == 1
    assert (await store.delivery(locked)).lease_until is None
