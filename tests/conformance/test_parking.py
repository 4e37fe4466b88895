"""What waits behind another delivery of its patient is parked: looked at once, stranded never."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from carehook.ledger.connections.database import Database
from carehook.ledger.port import LedgerUnavailable
from carehook.ledger.records import ClaimedDelivery
from carehook.ledger.sql import parking, queue
from carehook.ledger.sql.queue_statements import SURVEY
from carehook.ledger.states import DeliveryState, EndpointStatus, Ordering, Transition
from tests.conformance.store import LEASE, NOW, SECOND, Store, build_finished

LATER = NOW + timedelta(hours=2)
NEVER = timedelta(hours=1)

STRANDED = sa.text("""
    SELECT id FROM deliveries
    WHERE due_at IS NULL AND state IN ('pending', 'held') AND NOT EXISTS (
        SELECT 1 FROM deliveries AS other
        WHERE other.endpoint_id = deliveries.endpoint_id AND other.order_key = deliveries.order_key
            AND other.id <> deliveries.id
            AND (other.lease_until IS NOT NULL
                 OR other.position < deliveries.position AND other.state IN ('pending', 'held'))
    )
""")


async def find_stranded(store: Store) -> list[str]:
    """What no claim would find any more, and nothing brings forward."""
    async with store.database.read() as connection:
        return list((await connection.execute(STRANDED)).scalars())


@pytest.fixture
async def ordered(store: Store) -> AsyncIterator[Store]:
    """A store with an endpoint that asks for order per patient; in the end nothing is stranded."""
    await store.add_endpoints("ep_1", ordering=Ordering.PATIENT)
    yield store
    assert await find_stranded(store) == []


async def find_parked(store: Store, *delivery_ids: str) -> list[str]:
    return [each for each in delivery_ids if (await store.delivery(each)).due_at is None]


async def park(store: Store, count: int = 3) -> tuple[ClaimedDelivery, list[str]]:
    """Deliveries of one patient, the first of which is in flight while the rest are parked."""
    first, *rest = await store.accept(*["ep_1"] * count, patient="ann")
    claimed = await store.claim_one()
    assert claimed.id == first
    assert await find_parked(store, *rest) == rest
    return claimed, rest


async def intervene(store: Store, action: Callable[[Any], Awaitable[object]]) -> None:
    async with store.ledger.transaction() as tx:
        assert await action(tx.deliveries)


async def drain(store: Store, *, now: datetime = NOW) -> list[str]:
    """Claim and send everything that is due; the ids in the order in which they went."""
    sent: list[str] = []
    while claimed := await store.claim(now=now):
        sent += [each.id for each in claimed]
        assert all(await store.queue.finish([build_finished(each) for each in claimed], now))
    return sent


async def test_what_waits_behind_another_is_parked_and_the_rest_is_not(ordered: Store) -> None:
    ann = await ordered.accept("ep_1", "ep_1", patient="ann")
    bob = await ordered.accept("ep_1", "ep_1", patient="bob")
    nobody = await ordered.accept("ep_1", "ep_1")
    assert {each.id for each in await ordered.claim()} == {ann[0], bob[0], *nobody}
    assert await find_parked(ordered, *ann, *bob, *nobody) == [ann[1], bob[1]]


async def test_what_is_parked_makes_nobody_look(ordered: Store) -> None:
    claimed, _ = await park(ordered)
    assert await ordered.database.run(SURVEY.fetch) == []
    await ordered.finish(claimed)
    assert await ordered.database.run(SURVEY.fetch) == [("ep_1", NOW)]


async def test_what_is_parked_waits_and_is_not_overdue(ordered: Store) -> None:
    await park(ordered)
    async with ordered.ledger.snapshot() as tx:
        backlog = await tx.deliveries.backlog()
    assert (backlog.waiting, backlog.in_flight, backlog.oldest_due_at) == (2, 1, None)


@pytest.mark.parametrize("transition", [Transition.SUCCEED, Transition.EXHAUST])
async def test_one_that_is_over_brings_the_next_forward_and_no_other(ordered: Store, transition: Transition) -> None:
    claimed, [second, third] = await park(ordered)
    assert await ordered.finish(claimed, transition)
    assert (await ordered.delivery(second)).due_at == NOW
    assert await find_parked(ordered, second, third) == [third]
    assert await drain(ordered) == [second, third]


async def test_one_that_fails_moves_none_of_those_behind_it(ordered: Store) -> None:
    claimed, rest = await park(ordered)
    assert await ordered.finish(claimed, Transition.RESCHEDULE, due_at=LATER)
    assert await find_parked(ordered, *rest) == rest
    assert await drain(ordered, now=LATER - SECOND) == []
    assert await drain(ordered, now=LATER) == [claimed.id, *rest]


async def test_one_that_is_cancelled_while_it_waits_brings_the_next_forward(ordered: Store) -> None:
    claimed, rest = await park(ordered)
    assert await ordered.finish(claimed, Transition.RESCHEDULE, due_at=LATER)
    await intervene(ordered, lambda tx: tx.cancel(claimed.id, NOW))
    assert await drain(ordered) == rest


async def test_one_that_is_cancelled_in_the_middle_brings_nothing_forward(ordered: Store) -> None:
    claimed, [second, third] = await park(ordered)
    await intervene(ordered, lambda tx: tx.cancel(second, NOW))
    assert await find_parked(ordered, third) == [third]
    assert await ordered.finish(claimed)
    assert await drain(ordered) == [third]


@pytest.mark.parametrize("ends", ["finish", "give back", "recover"])
async def test_the_next_follows_the_end_of_a_lease_of_one_that_was_cancelled(ordered: Store, ends: str) -> None:
    claimed, rest = await park(ordered)
    await intervene(ordered, lambda tx: tx.cancel(claimed.id, NOW))
    assert await find_parked(ordered, *rest) == rest
    if ends == "finish":
        assert await ordered.finish(claimed, Transition.RESCHEDULE, due_at=LATER)
    elif ends == "give back":
        await ordered.queue.give_back([claimed])
    else:
        assert await ordered.queue.recover_lost(NOW + LEASE) == 1
    assert await drain(ordered, now=NOW + LEASE) == rest


async def test_one_that_is_given_back_or_lost_keeps_those_behind_it_parked(ordered: Store) -> None:
    claimed, rest = await park(ordered)
    await ordered.queue.give_back([claimed])
    assert await find_parked(ordered, *rest) == rest
    await ordered.claim_one()
    assert await ordered.queue.recover_lost(NOW + LEASE) == 1
    assert await find_parked(ordered, *rest) == rest
    assert await drain(ordered, now=NOW + LEASE) == [claimed.id, *rest]


async def test_switching_the_order_off_lets_all_that_is_parked_go(ordered: Store) -> None:
    claimed, rest = await park(ordered)
    await ordered.change("ep_1", ordering=Ordering.NONE)
    later = await ordered.accept("ep_1", patient="ann")
    assert {each.id for each in await ordered.claim()} == {*rest, *later}
    assert await ordered.finish(claimed)


async def test_what_is_held_stays_parked_and_goes_in_order_once_it_is_released(ordered: Store) -> None:
    claimed, rest = await park(ordered)
    await ordered.set_status("ep_1", EndpointStatus.PAUSED)
    rest += await ordered.accept("ep_1", patient="ann")
    assert await ordered.states(*rest) == [DeliveryState.HELD] * 3
    assert await find_parked(ordered, *rest) == rest[:2]
    assert await ordered.finish(claimed)
    await ordered.set_status("ep_1", EndpointStatus.ACTIVE)
    assert await drain(ordered) == rest


async def test_one_that_is_cancelled_while_it_is_held_brings_the_next_forward(ordered: Store) -> None:
    claimed, [second, third] = await park(ordered)
    assert await ordered.finish(claimed)
    await ordered.set_status("ep_1", EndpointStatus.PAUSED)
    await intervene(ordered, lambda tx: tx.cancel(second, NOW))
    await ordered.set_status("ep_1", EndpointStatus.ACTIVE)
    assert await drain(ordered) == [third]


async def test_a_deletion_cancels_what_is_parked(ordered: Store) -> None:
    claimed, rest = await park(ordered)
    await ordered.set_status("ep_1", EndpointStatus.DELETED)
    assert await ordered.states(claimed.id, *rest) == [DeliveryState.CANCELLED] * 3
    assert await ordered.finish(claimed)


@pytest.mark.parametrize("name", ["retry", "resend"])
async def test_what_is_asked_for_while_it_is_parked_still_waits_its_turn(ordered: Store, name: str) -> None:
    claimed, [second, third] = await park(ordered)
    asked = {"retry": lambda tx: tx.retry(third, NOW), "resend": lambda tx: tx.resend([third], NOW)}
    await intervene(ordered, asked[name])
    assert await ordered.claim() == []
    assert await ordered.finish(claimed)
    assert await drain(ordered) == [second, third]


async def test_a_resent_one_holds_back_those_that_are_parked_or_due(ordered: Store) -> None:
    [sent] = await ordered.accept("ep_1", patient="ann")
    assert await drain(ordered) == [sent]
    claimed, [second, third] = await park(ordered)
    assert await ordered.finish(claimed)
    # The second is due, the third is parked.
    await intervene(ordered, lambda tx: tx.resend([sent], NOW))
    assert (await ordered.claim_one()).id == sent
    assert await ordered.queue.recover_lost(NOW + LEASE) == 1
    assert await drain(ordered, now=NOW + LEASE) == [sent, second, third]


@pytest.mark.parametrize("ends", ["finish", "fail", "give back", "recover"])
async def test_one_that_is_resent_goes_after_a_later_one_that_is_in_flight(ordered: Store, ends: str) -> None:
    [sent] = await ordered.accept("ep_1", patient="ann")
    assert await drain(ordered) == [sent]
    claimed, rest = await park(ordered)
    await intervene(ordered, lambda tx: tx.resend([sent], NOW))
    assert await ordered.claim() == []
    assert await find_parked(ordered, sent) == [sent]
    match ends:
        case "finish":
            assert await ordered.finish(claimed)
        case "fail":
            assert await ordered.finish(claimed, Transition.RESCHEDULE, due_at=NOW)
        case "give back":
            await ordered.queue.give_back([claimed])
        case _:
            assert await ordered.queue.recover_lost(NOW + LEASE) == 1
    own = [] if ends == "finish" else [claimed.id]
    assert await drain(ordered, now=NOW + LEASE) == [sent, *own, *rest]


async def test_what_a_recovery_makes_due_again_holds_back_those_that_are_parked(ordered: Store) -> None:
    claimed, rest = await park(ordered)
    assert await ordered.finish(claimed, Transition.EXHAUST)
    assert (await ordered.claim_one()).id == rest[0]
    await intervene(ordered, lambda tx: tx.recover("ep_1", NOW, NOW))
    assert await ordered.claim() == []
    assert await ordered.queue.recover_lost(NOW + LEASE) == 1
    assert await drain(ordered, now=NOW + LEASE) == [claimed.id, *rest]


async def test_what_was_over_before_the_order_ended_is_resent_without_one(ordered: Store) -> None:
    sent = await ordered.accept("ep_1", "ep_1", patient="ann")
    assert await drain(ordered) == sent
    await ordered.change("ep_1", ordering=Ordering.NONE)
    await intervene(ordered, lambda tx: tx.resend(sent, NOW))
    assert {each.id for each in await ordered.claim()} == set(sent)


async def test_several_in_flight_when_the_order_begins_hold_back_the_rest_until_all_are_over(store: Store) -> None:
    await store.add_endpoints("ep_1")
    ids = await store.accept(*["ep_1"] * 4, patient="ann")
    leased = {each.id: each for each in await store.claim(2)}
    in_flight, rest = list(leased), [each for each in ids if each not in leased]
    await store.change("ep_1", ordering=Ordering.PATIENT)
    assert await store.claim() == []
    assert await find_parked(store, *rest) == rest
    finished = [build_finished(leased[in_flight[0]]), build_finished(leased[in_flight[1]])]
    assert await store.queue.finish(finished, NOW) == [True, True]
    assert await drain(store) == rest


async def test_results_for_an_order_count_wherever_they_come_from(ordered: Store) -> None:
    """Another process's queue does not know that the endpoint asks for order."""
    other = await ordered.second()
    claimed, [second, third] = await park(ordered)
    assert await other.queue.finish([build_finished(claimed)], NOW) == [True]
    claimed = await ordered.claim_one()
    await intervene(ordered, lambda tx: tx.cancel(second, NOW))
    await other.queue.give_back([claimed])
    assert await drain(other) == [third]


async def test_a_claim_goes_on_behind_what_it_could_not_look_at(
    sql_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = sql_store
    monkeypatch.setattr(queue, "SURVEY_EVERY", 1e9)
    monkeypatch.setattr(parking, "LOOKED_AT", 10)
    store = await store.second()
    await store.add_endpoints("ep_1", ordering=Ordering.PATIENT)
    ann = await store.accept(*["ep_1"] * 50, patient="ann", now=NOW - SECOND)
    [bob] = await store.accept("ep_1", patient="bob")
    assert [each.id for each in await store.queue.claim(1, room=lambda _: 1, now=NOW, lease=LEASE)] == ann[:1]
    claims = 0
    while not (found := await store.queue.claim(1, room=lambda _: 1, now=NOW, lease=LEASE)):
        # It is told of nothing, and does not wait.
        await store.queue.wait(at_most=NEVER)
        claims += 1
    assert [each.id for each in found] == [bob]
    assert 4 <= claims <= 5
    assert await store.queue.claim(1, room=lambda _: 1, now=NOW, lease=LEASE) == []


async def test_no_more_is_leased_or_looked_at_than_there_is_room_for(ordered: Store) -> None:
    ids = [(await ordered.accept("ep_1", patient=f"patient {number}"))[0] for number in range(6)]
    ann = await ordered.accept("ep_1", "ep_1", patient="ann")
    assert len(await ordered.claim(2, per_endpoint=2)) == 2
    assert await find_parked(ordered, *ids, *ann) == []
    assert len(await ordered.claim(100, per_endpoint=4)) == 4
    assert {each.id for each in await ordered.claim(100)} == {ann[0]}


async def test_limits_and_order_are_kept_together(store: Store) -> None:
    await store.add_endpoints("ep_1", ordering=Ordering.PATIENT, max_in_flight=2)
    for patient in ("ann", "bob", "eve"):
        await store.accept("ep_1", "ep_1", patient=patient)
    first = await store.claim()
    assert len(first) == 2
    assert await store.claim() == []
    assert await store.finish(first[0])
    assert len(await store.claim()) == 1


ENDS: dict[str, Callable[[Store, ClaimedDelivery], Awaitable[object]]] = {
    "result": lambda store, claimed: store.queue.finish([build_finished(claimed)], NOW),
    "return": lambda store, claimed: store.queue.give_back([claimed]),
    "recovery": lambda store, _: store.queue.recover_lost(NOW + LEASE),
    "cancellation": lambda store, claimed: intervene(store, lambda tx: tx.cancel(claimed.id, NOW)),
    "end of the order": lambda store, _: store.change("ep_1", ordering=Ordering.NONE),
}


@pytest.mark.parametrize("name", ENDS)
async def test_what_ends_a_hold_waits_for_whoever_may_be_parking_behind_it(postgresql_store: Store, name: str) -> None:
    store = postgresql_store
    await store.add_endpoints("ep_1", ordering=Ordering.PATIENT)
    claimed, rest = await park(store)
    rest += await store.accept("ep_1", patient="ann")
    async with store.ledger.transaction() as tx:
        # Its lane is locked, as by a claim.
        await tx.endpoints.close_circuit("ep_1")
        ending = asyncio.ensure_future(ENDS[name](store, claimed))
        await store.until_blocked()
        # And whoever claims does not wait, and parks nothing.
        assert await store.claim() == []
        assert await find_parked(store, rest[-1]) == []
        # Nor has whoever waits locked any of the deliveries, which come after the lanes.
        assert await tx.deliveries.cancel(rest[0], NOW)
    await ending


async def test_who_takes_it_that_there_is_no_order_leases_nothing_that_is_in_one(ordered: Store) -> None:
    """As a claim that began before an order did, and meets what that has numbered meanwhile."""
    await ordered.accept("ep_1", "ep_1", patient="ann")
    [nobody] = await ordered.accept("ep_1")
    believing = [
        sa.text(f"UPDATE endpoints SET ordering = '{believed}' WHERE id = 'ep_1'") for believed in ("none", "patient")
    ]
    async with ordered.database.write() as connection:
        await connection.execute(believing[0])
    assert [each.id for each in await ordered.claim()] == [nobody]
    async with ordered.database.write() as connection:
        await connection.execute(believing[1])
    assert len(await ordered.claim()) == 1


async def test_results_that_are_given_again_are_told_as_recorded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the store is away in the middle of a batch, or before it says that it has committed."""
    await store.add_endpoints("ep_1", "ep_2")
    await store.accept("ep_1", "ep_2")
    fine, failing = sorted(await store.claim(), key=lambda each: each.endpoint.id)
    results = [build_finished(fine), build_finished(failing, Transition.RESCHEDULE, due_at=LATER)]
    run = Database.run

    async def commit_and_break(self: Database, work: Any, *, durable: bool = True) -> Any:
        await run(self, work, durable=durable)
        raise LedgerUnavailable("the connection broke")

    monkeypatch.setattr(Database, "run", commit_and_break)
    with pytest.raises(LedgerUnavailable):
        await store.queue.finish(results, NOW)
    monkeypatch.undo()
    assert await store.queue.finish(results, NOW) == [True, True]
    assert [len(await store.attempts(each.id)) for each in (fine, failing)] == [1, 1]
    assert (await store.lane("ep_2")).failure_streak == 1
