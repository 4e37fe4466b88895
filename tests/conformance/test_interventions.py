"""What people do to deliveries: cancel, retry, resend, recover. What is in flight stays in flight."""

from datetime import datetime
from unittest.mock import patch

import pytest

from carehook.dispatch.interventions import Interventions
from carehook.ledger.sql.deliveries import DeliveriesSql
from carehook.ledger.states import DeliveryState, EndpointStatus, Transition
from carehook.refusals import Conflict
from tests.conformance.store import NOW, SECOND, Store

LATER = NOW + 60 * SECOND


async def bring_to(store: Store, state: DeliveryState) -> str:
    """A delivery of `ep_1` in a state, with one failed or successful attempt where the state comes from one."""
    await store.add_endpoints("ep_1")
    [delivery_id] = await store.publish("ep_1")
    if state in (DeliveryState.SUCCEEDED, DeliveryState.EXHAUSTED):
        result = Transition.SUCCEED if state == DeliveryState.SUCCEEDED else Transition.EXHAUST
        assert await store.finish(await store.claim_one(), result)
    elif state == DeliveryState.CANCELLED:
        async with store.ledger.transaction() as tx:
            assert await tx.deliveries.cancel(delivery_id, NOW)
    elif state == DeliveryState.HELD:
        await store.set_status("ep_1", EndpointStatus.PAUSED)
    assert await store.states(delivery_id) == [state]
    return delivery_id


@pytest.mark.parametrize("state", [DeliveryState.PENDING, DeliveryState.HELD])
async def test_what_is_cancelled_is_not_sent(store: Store, state: DeliveryState) -> None:
    delivery_id = await bring_to(store, state)
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.cancel(delivery_id, LATER)
    delivery = await store.delivery(delivery_id)
    assert (delivery.state, delivery.due_at, delivery.finished_at) == (DeliveryState.CANCELLED, None, LATER)
    assert await store.claim(now=LATER) == []


@pytest.mark.parametrize("state", [DeliveryState.SUCCEEDED, DeliveryState.EXHAUSTED, DeliveryState.CANCELLED])
async def test_what_is_final_is_not_cancelled(store: Store, state: DeliveryState) -> None:
    delivery_id = await bring_to(store, state)
    async with store.ledger.transaction() as tx:
        assert not await tx.deliveries.cancel(delivery_id, LATER)
    assert await store.states(delivery_id) == [state]


@pytest.mark.parametrize("state", [DeliveryState.PENDING, DeliveryState.EXHAUSTED, DeliveryState.CANCELLED])
async def test_a_retry_is_due_now_with_its_schedule_begun_anew(store: Store, state: DeliveryState) -> None:
    delivery_id = await bring_to(store, state)
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.retry(delivery_id, LATER)
    delivery = await store.delivery(delivery_id)
    assert (delivery.state, delivery.due_at, delivery.finished_at) == (DeliveryState.PENDING, LATER, None)
    assert delivery.failure_count == 0
    assert (await store.claim_one(now=LATER)).id == delivery_id


@pytest.mark.parametrize("state", [DeliveryState.HELD, DeliveryState.SUCCEEDED])
async def test_what_is_held_or_arrived_is_not_retried(store: Store, state: DeliveryState) -> None:
    delivery_id = await bring_to(store, state)
    before = await store.delivery(delivery_id)
    async with store.ledger.transaction() as tx:
        assert not await tx.deliveries.retry(delivery_id, LATER)
    assert await store.delivery(delivery_id) == before


async def test_an_unknown_delivery_is_neither_retried_nor_cancelled_nor_resent(store: Store) -> None:
    async with store.ledger.transaction() as tx:
        assert not await tx.deliveries.retry("dlv_unknown", NOW)
        assert not await tx.deliveries.cancel("dlv_unknown", NOW)
        assert await tx.deliveries.resend(["dlv_unknown"], NOW) == 0
        assert await tx.deliveries.resend([], NOW) == 0
        assert await tx.deliveries.recover("ep_unknown", NOW, NOW) == 0


async def test_what_is_in_flight_is_neither_retried_nor_resent(store: Store) -> None:
    await store.add_endpoints("ep_1")
    [delivery_id] = await store.publish("ep_1")
    claimed = await store.claim_one()
    async with store.ledger.transaction() as tx:
        assert not await tx.deliveries.retry(delivery_id, LATER)
        assert await tx.deliveries.resend([delivery_id], LATER) == 0
    assert await store.finish(claimed)


@pytest.mark.parametrize("state", list(DeliveryState))
async def test_resending_is_possible_from_any_state(store: Store, state: DeliveryState) -> None:
    delivery_id = await bring_to(store, state)
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.resend([delivery_id], LATER) == 1
    delivery = await store.delivery(delivery_id)
    expected = DeliveryState.HELD if state == DeliveryState.HELD else DeliveryState.PENDING
    assert (delivery.state, delivery.due_at, delivery.finished_at) == (expected, LATER, None)


async def test_resending_counts_what_it_changed(store: Store) -> None:
    await store.add_endpoints("ep_1")
    ids = await store.publish("ep_1", "ep_1", "ep_1")
    [claimed] = await store.claim(1)
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.resend(ids, LATER) == 2
    assert (await store.delivery(claimed.id)).due_at == NOW


@pytest.mark.parametrize("status", [EndpointStatus.PAUSED, EndpointStatus.DISABLED])
async def test_what_is_revived_for_an_endpoint_that_does_not_receive_is_held(
    store: Store, status: EndpointStatus
) -> None:
    retried = await bring_to(store, DeliveryState.EXHAUSTED)
    [resent] = await store.publish("ep_1")
    await store.finish(await store.claim_one())
    await store.set_status("ep_1", status)
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.retry(retried, LATER)
        assert await tx.deliveries.resend([resent], LATER) == 1
    assert await store.states(retried, resent) == [DeliveryState.HELD, DeliveryState.HELD]
    await store.set_status("ep_1", EndpointStatus.ACTIVE)
    assert {each.id for each in await store.claim(now=LATER)} == {retried, resent}


async def test_resending_to_several_endpoints_holds_those_that_do_not_receive(store: Store) -> None:
    await store.add_endpoints("ep_1", "ep_2")
    ids = await store.publish("ep_1", "ep_2")
    for claimed in await store.claim():
        await store.finish(claimed)
    await store.set_status("ep_1", EndpointStatus.PAUSED)
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.resend(ids, LATER) == 2
    assert await store.states(*ids) == [DeliveryState.HELD, DeliveryState.PENDING]


async def test_nothing_is_revived_for_an_endpoint_that_was_deleted(store: Store) -> None:
    delivery_id = await bring_to(store, DeliveryState.EXHAUSTED)
    await store.set_status("ep_1", EndpointStatus.DELETED)
    async with store.ledger.transaction() as tx:
        assert not await tx.deliveries.retry(delivery_id, LATER)
        assert await tx.deliveries.resend([delivery_id], LATER) == 0
        assert await tx.deliveries.recover("ep_1", NOW, LATER) == 0
    assert await store.states(delivery_id) == [DeliveryState.EXHAUSTED]


async def test_recovering_makes_due_what_failed_since(store: Store) -> None:
    exhausted = await bring_to(store, DeliveryState.EXHAUSTED)
    [retrying] = await store.publish("ep_1")
    await store.finish(await store.claim_one(), Transition.RESCHEDULE, due_at=LATER + LATER.resolution)
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.recover("ep_1", NOW, LATER) == 2
    claimed = await store.claim(now=LATER)
    assert {each.id for each in claimed} == {exhausted, retrying}
    assert {each.failure_count for each in claimed} == {0}


async def test_recovering_leaves_what_failed_before(store: Store) -> None:
    delivery_id = await bring_to(store, DeliveryState.EXHAUSTED)
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.recover("ep_1", NOW + SECOND, LATER) == 0
    assert await store.states(delivery_id) == [DeliveryState.EXHAUSTED]


async def test_recovering_leaves_what_did_not_fail_or_was_cancelled(store: Store) -> None:
    await store.add_endpoints("ep_1")
    arrived, cancelled, fresh = await store.publish("ep_1", "ep_1", "ep_1")
    leased = {each.id: each for each in await store.claim()}
    await store.finish(leased[arrived])
    await store.finish(leased[cancelled], Transition.RESCHEDULE, due_at=LATER)
    await store.queue.give_back([leased[fresh]])
    async with store.ledger.transaction() as tx:
        await tx.deliveries.cancel(cancelled, NOW)
        assert await tx.deliveries.recover("ep_1", NOW, LATER) == 0
    succeeded, pending = DeliveryState.SUCCEEDED, DeliveryState.PENDING
    assert await store.states(arrived, cancelled, fresh) == [succeeded, DeliveryState.CANCELLED, pending]


async def test_recovering_for_an_endpoint_that_does_not_receive_holds(store: Store) -> None:
    delivery_id = await bring_to(store, DeliveryState.EXHAUSTED)
    await store.set_status("ep_1", EndpointStatus.DISABLED)
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.recover("ep_1", NOW, LATER) == 1
    assert await store.states(delivery_id) == [DeliveryState.HELD]


async def test_recovering_is_for_one_endpoint(store: Store) -> None:
    delivery_id = await bring_to(store, DeliveryState.EXHAUSTED)
    await store.add_endpoints("ep_2")
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.recover("ep_2", NOW, LATER) == 0
    assert await store.states(delivery_id) == [DeliveryState.EXHAUSTED]


@pytest.mark.parametrize(
    ("action", "said"),
    [("cancel", "is succeeded already"), ("retry", "is succeeded. To send the event again, resend it")],
)
async def test_who_comes_just_after_the_end_of_an_attempt_is_told_how_it_ended(
    postgresql_store: Store, action: str, said: str
) -> None:
    store = postgresql_store
    await store.add_endpoints("ep_1")
    await store.publish("ep_1")
    claimed = await store.claim_one()
    act = getattr(DeliveriesSql, action)

    async def act_late(self: DeliveriesSql, delivery_id: str, now: datetime) -> bool:
        assert await store.finish(claimed)
        return bool(await act(self, delivery_id, now))

    interventions = Interventions(store.ledger, lambda: NOW)
    with patch.object(DeliveriesSql, action, act_late), pytest.raises(Conflict, match=said):
        await getattr(interventions, action)(claimed.id)
