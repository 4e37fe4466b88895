"""What a claim looks at: endpoints of which something was heard, those that fall due, and what surveys find.

Surveys are so rare here that none is made unless a test asks for it, but for the first.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest

from carehook.ledger.records import ClaimedDelivery
from carehook.ledger.sql import queue
from carehook.ledger.states import EndpointStatus, Ordering, Transition
from tests.conformance.store import LEASE, NOW, SECOND, Store, build_finished

LATER = NOW + timedelta(hours=1)


@pytest.fixture(params=["sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    """The queues of databases alone: by JetStream a worker hears what it knew, and looks once more."""
    chosen: str = request.param
    return chosen


@pytest.fixture(autouse=True)
def rare_surveys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "SURVEY_EVERY", 1e9)


@pytest.fixture
async def quiet(store: Store) -> Store:
    """A store that was looked through and has nothing due, though `ep_1`, `ep_2` and `ep_3` are there."""
    await store.add_endpoints("ep_1", "ep_2", "ep_3")
    for _ in range(2):
        assert await store.claim_known() == []
    return store


async def find_candidates(store: Store, *, limit: int = 100, now: datetime = NOW, room: int = 0) -> list[str]:
    """The endpoints that a claim asks about; it takes no more of each than there is room."""
    asked: list[str] = []

    def tell_room(endpoint_id: str) -> int:
        asked.append(endpoint_id)
        return room

    await store.queue.claim(limit, room=tell_room, now=now, lease=LEASE)
    return asked


def ids_of(claimed: Sequence[ClaimedDelivery]) -> list[str]:
    return [each.id for each in claimed]


async def succeed(store: Store, claimed: Sequence[ClaimedDelivery], now: datetime = NOW) -> None:
    assert all(await store.queue.finish([build_finished(each) for each in claimed], now))


async def test_what_was_not_heard_of_is_not_looked_at(quiet: Store) -> None:
    await quiet.publish("ep_2")
    assert await find_candidates(quiet) == ["ep_2"]
    assert await find_candidates(quiet) == []


async def test_what_was_accepted_is_looked_at(quiet: Store) -> None:
    [delivery_id] = await quiet.accept("ep_3")
    assert ids_of(await quiet.claim_known()) == [delivery_id]


async def test_an_endpoint_without_room_comes_back_when_there_is_some(quiet: Store) -> None:
    [delivery_id] = await quiet.publish("ep_1")
    assert await find_candidates(quiet, room=0) == ["ep_1"]
    assert await quiet.claim_known() == []
    quiet.queue.wake(["ep_1"])
    assert ids_of(await quiet.claim_known()) == [delivery_id]


async def test_more_than_its_share_is_known_to_be_left(quiet: Store) -> None:
    ids = await quiet.publish(*["ep_1"] * 5)
    found = ids_of(await quiet.claim_known(2)) + ids_of(await quiet.claim_known(2)) + ids_of(await quiet.claim_known(2))
    assert sorted(found) == sorted(ids)


async def test_waking_all_finds_what_another_process_did(quiet: Store) -> None:
    other = await quiet.second()
    [delivery_id] = await other.publish("ep_1")
    quiet.queue.wake()
    assert ids_of(await quiet.claim_known()) == [delivery_id]


async def test_a_fresh_process_finds_what_there_is(quiet: Store) -> None:
    ids = await quiet.publish("ep_1", "ep_2")
    assert sorted(ids_of(await (await quiet.second()).claim_known())) == sorted(ids)


@pytest.mark.parametrize("survey_every", [0.0, 0.001])
async def test_surveys_find_what_another_process_did(
    store: Store, survey_every: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "SURVEY_EVERY", survey_every)
    await store.add_endpoints("ep_1")
    worker = await store.second()
    assert await worker.claim_known() == []
    [delivery_id] = await store.publish("ep_1")
    async with asyncio.timeout(30):
        while not (claimed := await worker.claim_known()):
            await worker.queue.wait(at_most=timedelta(milliseconds=10))
    assert ids_of(claimed) == [delivery_id]


async def test_what_failed_comes_when_it_is_due_again(quiet: Store) -> None:
    [delivery_id] = await quiet.publish("ep_1")
    [claimed] = await quiet.claim_known()
    await quiet.finish(claimed, Transition.RESCHEDULE, due_at=NOW + 5 * SECOND)
    assert await find_candidates(quiet, now=NOW + 4 * SECOND) == []
    assert ids_of(await quiet.claim_known(now=NOW + 5 * SECOND)) == [delivery_id]


async def test_what_a_survey_saw_comes_when_it_is_due(quiet: Store) -> None:
    [delivery_id] = await (await quiet.second()).publish("ep_1", due_at=LATER)
    quiet.queue.wake()
    assert await quiet.claim_known() == []
    assert ids_of(await quiet.claim_known(now=LATER)) == [delivery_id]


async def test_waiting_ends_when_the_next_falls_due(quiet: Store) -> None:
    [delivery_id] = await quiet.publish("ep_1")
    [claimed] = await quiet.claim_known()
    soon = NOW + timedelta(milliseconds=30)
    await quiet.finish(claimed, Transition.RESCHEDULE, due_at=soon)
    assert await quiet.claim_known() == []
    async with asyncio.timeout(30):
        await quiet.queue.wait(at_most=timedelta(hours=1))
    assert ids_of(await quiet.claim_known(now=soon)) == [delivery_id]


async def test_waiting_ends_for_what_is_put_on_the_agenda_meanwhile(quiet: Store) -> None:
    await quiet.publish("ep_1")
    [claimed] = await quiet.claim_known()
    assert await quiet.claim_known() == []
    waiting = asyncio.create_task(quiet.queue.wait(at_most=timedelta(hours=1)))
    await asyncio.sleep(0)
    await quiet.finish(claimed, Transition.RESCHEDULE, due_at=NOW + timedelta(milliseconds=30))
    async with asyncio.timeout(30):
        await waiting
    assert await quiet.claim_known() == []
    async with asyncio.timeout(30):
        await quiet.queue.wait(at_most=timedelta(hours=1))
    assert len(await quiet.claim_known(now=NOW + SECOND)) == 1


async def test_waiting_does_not_begin_while_the_agenda_is_not_empty(quiet: Store) -> None:
    await quiet.publish("ep_1", "ep_2", "ep_3")
    assert len(await quiet.claim_known(1)) == 1
    async with asyncio.timeout(30):
        await quiet.queue.wait(at_most=timedelta(hours=1))
    assert len(await quiet.claim_known(1)) == 1


async def test_endpoints_that_turn_out_to_have_nothing_do_not_hide_others(quiet: Store) -> None:
    other = await quiet.second()
    await quiet.publish("ep_1", "ep_2")
    [delivery_id] = await quiet.publish("ep_3")
    assert len(await other.claim(passing_over=["ep_3"])) == 2
    found: list[str] = []
    async with asyncio.timeout(30):
        while not found:
            found = ids_of(await quiet.claim_known(1))
            if not found:
                await quiet.queue.wait(at_most=timedelta(hours=1))
    assert found == [delivery_id]


async def test_a_claim_that_fails_loses_nothing(quiet: Store) -> None:
    ids = await quiet.publish("ep_1", "ep_2")
    # A lease of a billion days ends when no calendar knows: the claim fails after it took them off the agenda.
    with pytest.raises(OverflowError):
        await quiet.queue.claim(100, room=lambda _: 1, now=NOW, lease=timedelta.max)
    assert sorted(ids_of(await quiet.claim_known())) == sorted(ids)


async def test_a_claim_that_is_cancelled_loses_nothing(quiet: Store) -> None:
    ids = await quiet.publish("ep_1", "ep_2")
    claiming = asyncio.create_task(quiet.claim_known())
    await asyncio.sleep(0)
    claiming.cancel()
    await asyncio.gather(claiming, return_exceptions=True)
    # What was leased for a caller that has gone comes back as any lost lease.
    await quiet.queue.recover_lost(NOW + LEASE)
    assert sorted(ids_of(await quiet.claim_known(now=NOW + LEASE))) == sorted(ids)


async def test_a_survey_that_is_cancelled_is_made_again(quiet: Store) -> None:
    ids = await quiet.publish("ep_1", "ep_2")
    fresh = await quiet.second()
    claiming = asyncio.create_task(fresh.claim_known())
    await asyncio.sleep(0)
    claiming.cancel()
    assert isinstance((await asyncio.gather(claiming, return_exceptions=True))[0], asyncio.CancelledError)
    assert sorted(ids_of(await fresh.claim_known())) == sorted(ids)


async def test_more_endpoints_than_a_claim_may_take_get_their_turn(quiet: Store) -> None:
    names = [f"ep_many_{number:03}" for number in range(600)]
    await quiet.add_endpoints(*names)
    await quiet.publish(*names, *names)
    found: list[str] = []
    while claimed := await quiet.claim_known(50):
        found += [each.endpoint.id for each in claimed]
    assert Counter(found) == dict.fromkeys(names, 2)
    assert len(set(found[:600])) == 600


async def test_an_endless_backlog_leaves_its_neighbours_their_turn(quiet: Store) -> None:
    await quiet.publish(*["ep_1"] * 200, due_at=NOW - SECOND)
    await quiet.publish("ep_2", "ep_2")
    claimed = await quiet.claim_known(4)
    assert Counter(each.endpoint.id for each in claimed) == {"ep_1": 2, "ep_2": 2}


async def wake_by(store: Store, how: str, claimed: Sequence[ClaimedDelivery]) -> None:
    """Let something of `ep_1` be due that was not."""
    if how == "release":
        await store.ledger.settle("ep_1", NOW, waits=False)
        return
    async with store.ledger.transaction() as tx:
        if how == "retry":
            assert await tx.deliveries.retry(claimed[0].id, NOW)
        elif how == "resend":
            assert await tx.deliveries.resend([claimed[0].id], NOW) == 1
        else:
            assert await tx.deliveries.recover("ep_1", NOW, NOW) == 1


@pytest.mark.parametrize("how", ["release", "retry", "resend", "recover"])
async def test_what_a_person_makes_due_is_looked_at(quiet: Store, how: str) -> None:
    await quiet.publish("ep_1")
    claimed = await quiet.claim_known()
    if how == "release":
        await quiet.queue.give_back(claimed)
        await quiet.set_status("ep_1", EndpointStatus.PAUSED)
        await quiet.change("ep_1", status=EndpointStatus.ACTIVE)
    else:
        await quiet.finish(claimed[0], Transition.EXHAUST)
    assert await quiet.claim_known() == []
    await wake_by(quiet, how, claimed)
    assert len(await quiet.claim_known()) == 1


async def test_what_is_given_back_is_looked_at(quiet: Store) -> None:
    await quiet.publish("ep_1")
    await quiet.queue.give_back(await quiet.claim_known())
    assert len(await quiet.claim_known()) == 1


@pytest.mark.parametrize("fields", [{"ordering": Ordering.PATIENT}, {"max_in_flight": 1}])
async def test_an_attempt_that_ends_brings_what_waited_for_it(quiet: Store, fields: dict[str, object]) -> None:
    await quiet.change("ep_1", **fields)
    ids = await quiet.accept("ep_1", "ep_1", patient="ann")
    claimed = await quiet.claim_known()
    # News of the endpoint while nothing of it may go does not make it forgotten.
    ids += await quiet.accept("ep_1", patient="ann")
    assert await quiet.claim_known() == []
    await succeed(quiet, claimed)
    assert ids_of([*claimed, *await quiet.claim_known()]) == ids[:2]


async def test_a_result_brings_nobody_who_does_not_wait_for_it(quiet: Store) -> None:
    await quiet.publish("ep_1")
    await succeed(quiet, await quiet.claim_known())
    assert await find_candidates(quiet) == []


async def test_a_paused_endpoint_is_off_the_agenda_after_one_look(quiet: Store) -> None:
    await quiet.publish("ep_1")
    await quiet.set_status("ep_1", EndpointStatus.PAUSED)
    assert await find_candidates(quiet, room=1) == ["ep_1"]
    assert await find_candidates(quiet, room=1) == []
