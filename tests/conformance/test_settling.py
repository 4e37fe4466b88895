"""Deliveries follow their endpoint's status in parts, whoever moves them and whatever happens between two parts."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.util import await_only

from carehook.ledger.connections.sessions import Row, SessionSqlalchemy
from carehook.ledger.records import Settled
from carehook.ledger.sql import settling
from carehook.ledger.sql.settling import conclude, move_part
from carehook.ledger.states import DeliveryState, EndpointStatus, Ordering, Transition
from tests.conformance.store import NOW, SECOND, Store

PENDING, HELD, CANCELLED = DeliveryState.PENDING, DeliveryState.HELD, DeliveryState.CANCELLED
LATER = NOW + 60 * SECOND


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "PART", 2)


async def publish_for(store: Store, count: int = 5) -> list[str]:
    """So many deliveries of a new endpoint, the oldest first."""
    await store.add_endpoints("ep_1")
    return [(await store.publish("ep_1"))[0] for _ in range(count)]


async def is_settled(store: Store) -> bool:
    return "ep_1" not in await store.ledger.unsettled()


@asynccontextmanager
async def locked(store: Store, *delivery_ids: str) -> AsyncIterator[None]:
    """Deliveries that another transaction has locked meanwhile (PostgreSQL)."""
    async with store.database.write() as connection:
        query = sa.text("SELECT id FROM deliveries WHERE id = ANY (:ids) FOR NO KEY UPDATE")
        assert len((await connection.execute(query, {"ids": list(delivery_ids)})).all()) == len(delivery_ids)
        yield


@asynccontextmanager
async def moving(store: Store) -> AsyncIterator[int]:
    """A part that is not committed meanwhile; how many it moved (PostgreSQL)."""
    async with store.database.write() as connection:
        part = await connection.run_sync(lambda inner: move_part(SessionSqlalchemy(inner), "ep_1", NOW, waits=True))
        assert part is not None
        yield part.moved


# ------------------------------------------------------------------------------------ in parts


@pytest.mark.parametrize(
    ("status", "state"),
    [(EndpointStatus.PAUSED, HELD), (EndpointStatus.DISABLED, HELD), (EndpointStatus.DELETED, CANCELLED)],
)
async def test_what_is_pending_follows_part_by_part(store: Store, status: EndpointStatus, state: DeliveryState) -> None:
    ids = await publish_for(store)
    claimed = await store.claim(1)
    assert await is_settled(store)
    await store.change("ep_1", status=status)
    parts = []
    while not await is_settled(store):
        parts.append(await store.ledger.settle("ep_1", LATER, waits=False))
    assert parts == [Settled(2, is_complete=False), Settled(2, is_complete=False), Settled(1, is_complete=True)]
    assert await store.states(*ids) == [state] * 5
    assert (await store.delivery(claimed[0].id)).lease_until is not None


async def test_what_was_held_is_released_part_by_part_and_the_oldest_first(store: Store) -> None:
    ids = await publish_for(store)
    await store.set_status("ep_1", EndpointStatus.PAUSED)
    await store.change("ep_1", status=EndpointStatus.ACTIVE)
    assert await store.claim() == []
    for released in (ids[:2], ids[2:4], ids[4:]):
        assert (await store.ledger.settle("ep_1", NOW, waits=False)).moved == len(released)
        # Whoever waits is told.
        assert [each.id for each in await store.claim_known()] == released
    assert await is_settled(store)


async def test_a_released_delivery_is_due_as_before(store: Store) -> None:
    [delivery_id] = await publish_for(store, 1)
    await store.set_status("ep_1", EndpointStatus.PAUSED)
    await store.set_status("ep_1", EndpointStatus.ACTIVE)
    delivery = await store.delivery(delivery_id)
    assert (delivery.due_at, delivery.finished_at) == (NOW, None)


async def test_a_deletion_cancels_what_waits_and_what_is_held(store: Store) -> None:
    pending, *_ = await publish_for(store, 1)
    [held] = await store.publish("ep_1", state=HELD)
    await store.change("ep_1", status=EndpointStatus.DELETED)
    assert await store.settle("ep_1", LATER) == 2
    for delivery in (await store.delivery(pending), await store.delivery(held)):
        assert (delivery.state, delivery.due_at, delivery.finished_at) == (CANCELLED, None, LATER)


async def test_a_neighbour_and_what_is_finished_stay_as_they_are(store: Store) -> None:
    await store.add_endpoints("ep_1", "ep_2")
    ids = await store.publish("ep_1", "ep_1", "ep_1")
    results = dict(zip(ids, (Transition.SUCCEED, Transition.EXHAUST), strict=False))
    for claimed in await store.claim():
        if claimed.id in results:
            await store.finish(claimed, results[claimed.id])
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.cancel(ids[2], NOW)
    [elsewhere] = await store.publish("ep_2")
    for status in (EndpointStatus.PAUSED, EndpointStatus.ACTIVE, EndpointStatus.DELETED):
        await store.change("ep_1", status=status)
        assert await store.settle("ep_1") == 0
    assert await store.states(*ids, elsewhere) == [DeliveryState.SUCCEEDED, DeliveryState.EXHAUSTED, CANCELLED, PENDING]


async def test_nothing_is_to_be_settled_where_the_status_stays(store: Store) -> None:
    await publish_for(store)
    await store.change("ep_1", description="the new portal", ordering=Ordering.PATIENT)
    assert await is_settled(store)
    assert await store.ledger.settle("ep_1", NOW, waits=False) == Settled(0, is_complete=True)


async def test_the_longest_unsettled_comes_first(store: Store) -> None:
    await store.add_endpoints("ep_1", "ep_2", "ep_3")
    await store.change("ep_3", status=EndpointStatus.PAUSED, updated_at=NOW)
    await store.change("ep_1", status=EndpointStatus.PAUSED, updated_at=NOW + SECOND)
    assert await store.ledger.unsettled() == ["ep_3", "ep_1"]


# ------------------------------------------------------------------------------------ between two parts


async def test_nothing_is_claimed_of_a_paused_endpoint_before_its_deliveries_are_held(store: Store) -> None:
    ids = await publish_for(store)
    await store.change("ep_1", status=EndpointStatus.PAUSED)
    assert await store.claim() == []
    assert await store.states(*ids) == [PENDING] * 5


async def test_what_is_accepted_meanwhile_goes_by_the_new_status(store: Store) -> None:
    await publish_for(store)
    await store.change("ep_1", status=EndpointStatus.PAUSED)
    ids = await store.accept("ep_1")
    await store.ledger.settle("ep_1", NOW, waits=False)
    ids += await store.accept("ep_1")
    assert await store.states(*ids) == [HELD, HELD]


async def test_a_resume_in_the_middle_of_a_pause_lets_all_go_on(store: Store) -> None:
    ids = await publish_for(store)
    await store.change("ep_1", status=EndpointStatus.PAUSED)
    await store.ledger.settle("ep_1", NOW, waits=False)
    assert sorted(await store.states(*ids)) == [HELD] * 2 + [PENDING] * 3
    await store.change("ep_1", status=EndpointStatus.ACTIVE)
    assert len(await store.claim()) == 3
    assert await store.settle("ep_1") == 2
    assert await store.states(*ids) == [PENDING] * 5
    assert len(await store.claim()) == 2


async def test_a_deletion_in_the_middle_of_a_resume_cancels_all(store: Store) -> None:
    ids = await publish_for(store)
    await store.set_status("ep_1", EndpointStatus.PAUSED)
    await store.change("ep_1", status=EndpointStatus.ACTIVE)
    await store.ledger.settle("ep_1", NOW, waits=False)
    await store.change("ep_1", status=EndpointStatus.DELETED)
    assert await store.settle("ep_1") == 5
    assert await store.states(*ids) == [CANCELLED] * 5


async def test_another_process_goes_on_where_one_stopped(store: Store) -> None:
    ids = await publish_for(store)
    await store.change("ep_1", status=EndpointStatus.PAUSED)
    await store.ledger.settle("ep_1", NOW, waits=False)
    other = await store.second()
    assert await other.ledger.unsettled() == ["ep_1"]
    assert await other.settle("ep_1") == 3
    assert await store.states(*ids) == [HELD] * 5


async def test_a_result_of_what_is_not_held_yet_counts_and_is_held_then(store: Store) -> None:
    [delivery_id] = await publish_for(store, 1)
    claimed = await store.claim_one()
    await store.change("ep_1", status=EndpointStatus.PAUSED)
    assert await store.finish(claimed, Transition.RESCHEDULE, due_at=LATER)
    assert await store.claim(now=LATER) == []
    await store.settle("ep_1")
    delivery = await store.delivery(delivery_id)
    assert (delivery.state, delivery.due_at) == (HELD, LATER)


async def test_recovering_right_after_a_resume_is_for_what_is_still_held_as_well(store: Store) -> None:
    ids = await publish_for(store, 3)
    for claimed in await store.claim():
        await store.finish(claimed, Transition.RESCHEDULE, due_at=LATER)
    await store.set_status("ep_1", EndpointStatus.PAUSED)
    await store.change("ep_1", status=EndpointStatus.ACTIVE)
    await store.ledger.settle("ep_1", NOW, waits=False)
    assert sorted(await store.states(*ids)) == [HELD, PENDING, PENDING]
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.recover("ep_1", NOW, NOW + SECOND) == 3
    await store.settle("ep_1")
    claimed_again = await store.claim(now=NOW + SECOND)
    assert sorted(each.id for each in claimed_again) == ids
    assert {each.failure_count for each in claimed_again} == {0}


async def test_the_backlog_counts_what_has_yet_to_follow_as_if_it_had(store: Store) -> None:
    await store.add_endpoints("ep_1", "ep_2", "ep_3")
    await store.publish("ep_1", "ep_1", "ep_2", due_at=NOW - 60 * SECOND)
    await store.publish("ep_3", due_at=NOW - SECOND)
    await store.change("ep_1", status=EndpointStatus.PAUSED)
    await store.change("ep_2", status=EndpointStatus.DELETED)

    async def read() -> tuple[object, ...]:
        async with store.ledger.snapshot() as tx:
            backlog = await tx.deliveries.backlog()
        return backlog.waiting, backlog.held, backlog.oldest_due_at

    counted = (1, 2, NOW - SECOND)
    assert await read() == counted
    await store.settle("ep_1")
    await store.settle("ep_2")
    assert await read() == counted


# ------------------------------------------------------------------------------------ results that disable


async def test_a_result_disables_by_the_status_alone_and_the_rest_follows(store: Store) -> None:
    ids = await publish_for(store)
    [claimed] = await store.claim(1)
    assert await store.finish(claimed, Transition.EXHAUST, disable_reason="410 Gone")
    assert (await store.endpoint("ep_1")).status is EndpointStatus.DISABLED
    others = [each for each in ids if each != claimed.id]
    assert await store.states(*others) == [PENDING] * 4
    assert await store.claim() == []
    assert not await is_settled(store)
    assert await store.settle("ep_1") == 4
    assert await store.states(*others) == [HELD] * 4


async def test_a_result_that_disables_waits_for_none_of_the_others(postgresql_store: Store) -> None:
    store = postgresql_store
    await publish_for(store)
    [claimed] = await store.claim(1)
    other, *_ = await store.publish("ep_1")
    async with locked(store, other):
        assert await store.finish(claimed, Transition.EXHAUST, disable_reason="410 Gone")


# ------------------------------------------------------------------------------------ several at once


async def test_what_is_locked_is_left_for_later_and_counts_as_not_settled(postgresql_store: Store) -> None:
    store = postgresql_store
    ids = await publish_for(store, 4)
    claimed = {each.id: each for each in await store.claim()}
    await store.queue.give_back([claimed[each] for each in ids[1:]])
    await store.change("ep_1", status=EndpointStatus.PAUSED)
    async with locked(store, ids[0], ids[1]):
        assert await store.ledger.settle("ep_1", NOW, waits=False) == Settled(2, is_complete=False)
        assert await store.ledger.settle("ep_1", NOW, waits=False) == Settled(0, is_complete=False)
        assert not await is_settled(store)
        # The result of one arrives just now, and waits for whoever has it.
        finishing = asyncio.create_task(store.finish(claimed[ids[0]], Transition.RESCHEDULE, due_at=LATER))
        await store.until_blocked()
        assert await store.ledger.settle("ep_1", NOW, waits=False) == Settled(0, is_complete=False)
    assert await finishing
    assert await store.settle("ep_1") == 2
    assert await store.states(*ids) == [HELD] * 4
    assert await is_settled(store)


async def test_who_finds_another_at_the_endpoint_leaves_it_to_them_or_waits(postgresql_store: Store) -> None:
    store = postgresql_store
    ids = await publish_for(store)
    await store.change("ep_1", status=EndpointStatus.PAUSED)
    other = await store.second()
    async with moving(store) as moved:
        assert moved == 2
        assert await other.ledger.settle("ep_1", NOW, waits=False) == Settled(0, is_complete=False)
        waiting = asyncio.create_task(other.ledger.settle("ep_1", NOW, waits=True))
        await store.until_blocked()
    assert await waiting == Settled(2, is_complete=False)
    assert await other.ledger.settle("ep_1", NOW, waits=False) == Settled(1, is_complete=True)
    assert await store.states(*ids) == [HELD] * 5


async def test_several_who_settle_at_once_move_all_of_it(postgresql_store: Store) -> None:
    store = postgresql_store
    ids = await publish_for(store, 40)
    await store.change("ep_1", status=EndpointStatus.PAUSED)
    others = [await store.second() for _ in range(3)]
    assert sum(await asyncio.gather(*(each.settle("ep_1") for each in (store, *others)))) == 40
    assert set(await store.states(*ids)) == {HELD}
    assert await is_settled(store)


async def test_accepting_and_claiming_for_the_organization_go_on_during_a_part(postgresql_store: Store) -> None:
    store = postgresql_store
    await publish_for(store)
    await store.add_endpoints("ep_2")
    await store.change("ep_1", status=EndpointStatus.PAUSED)
    async with moving(store):
        made = await store.accept("ep_1", "ep_2")
        assert await store.states(*made) == [HELD, PENDING]
        assert [each.id for each in await store.claim()] == made[1:]


async def test_who_waits_to_change_the_status_meanwhile_does_not_keep_others_from_accepting(
    postgresql_store: Store,
) -> None:
    store = postgresql_store
    ids = await publish_for(store)
    await store.change("ep_1", status=EndpointStatus.PAUSED)
    async with moving(store):
        resuming = asyncio.create_task(store.set_status("ep_1", EndpointStatus.ACTIVE))
        await store.until_blocked()
        ids += await store.accept("ep_1")
    await resuming
    assert await store.states(*ids) == [PENDING] * 6
    assert await is_settled(store)


async def test_a_status_does_not_change_between_the_last_look_and_the_end_of_the_mark(
    postgresql_store: Store,
) -> None:
    store = postgresql_store
    ids = await publish_for(store, 1)
    async with store.database.write() as connection:
        assert await connection.run_sync(lambda inner: conclude(SessionSqlalchemy(inner), "ep_1", waits=True))
        pausing = asyncio.create_task(store.change("ep_1", status=EndpointStatus.PAUSED))
        await store.until_blocked()
    await pausing
    assert not await is_settled(store)
    await store.settle("ep_1")
    assert await store.states(*ids) == [HELD]


@pytest.mark.parametrize("after", range(4))
async def test_a_result_between_two_looks_leaves_nothing_out_of_place(postgresql_store: Store, after: int) -> None:
    store = postgresql_store
    ids = await publish_for(store, 1)
    claimed = await store.claim_one()
    await store.change("ep_1", status=EndpointStatus.PAUSED)
    async with store.database.write() as connection:

        def conclude_interrupted(inner: sa.Connection) -> bool:
            session = _Interrupted(inner, after, lambda: store.finish(claimed, Transition.RESCHEDULE, due_at=LATER))
            return conclude(session, "ep_1", waits=True)

        assert not await connection.run_sync(conclude_interrupted)
    if not (await store.delivery(ids[0])).attempt_count:
        await store.finish(claimed, Transition.RESCHEDULE, due_at=LATER)
    assert await store.settle("ep_1") == 1
    assert await store.states(*ids) == [HELD]


class _Interrupted(SessionSqlalchemy):
    """A session that lets something else be done after so many of its statements."""

    def __init__(self, connection: sa.Connection, after: int, other: Callable[[], Awaitable[object]]) -> None:
        super().__init__(connection)
        self._left = after
        self._other = other

    def fetch(self, text: str, parameters: Sequence[Any]) -> Sequence[Row]:
        if self._left == 0:
            await_only(self._other())
        self._left -= 1
        return super().fetch(text, parameters)


async def test_a_part_waits_for_whoever_changes_the_status_and_goes_by_the_new_one(postgresql_store: Store) -> None:
    store = postgresql_store
    ids = await publish_for(store)
    async with store.ledger.transaction() as tx:
        endpoint = await tx.endpoints.get("ep_1", lock=True)
        assert endpoint is not None
        settled = asyncio.create_task(store.ledger.settle("ep_1", NOW, waits=True))
        await store.until_blocked()
        await tx.endpoints.update(replace(endpoint, status=EndpointStatus.DELETED))
    assert (await settled).moved == 2
    assert sorted(await store.states(*ids)) == [CANCELLED] * 2 + [PENDING] * 3


# ------------------------------------------------------------------------------------ counting


@pytest.mark.parametrize(("at_most", "counted"), [(10, 4), (4, 4), (3, 3), (1, 1)])
async def test_what_is_unfinished_is_counted_so_far(store: Store, at_most: int, counted: int) -> None:
    await publish_for(store, 3)
    [in_flight, done] = await store.claim(2)
    assert await store.finish(done)
    await store.publish("ep_1", "ep_1", state=HELD)
    await store.add_endpoints("ep_2")
    await store.publish("ep_2")
    assert (await store.delivery(in_flight.id)).lease_until is not None
    async with store.ledger.snapshot() as tx:
        assert await tx.deliveries.count_unfinished("ep_1", at_most=at_most) == counted
