"""What rows refer to is there, whoever adds them and whether or not the database sees to it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from carehook.ids import DELIVERY, EVENT, new_id
from carehook.ledger.port import DanglingReference
from carehook.ledger.records import Additions, AttemptOutcome, NewDelivery, StoredEvent
from carehook.ledger.sql.finishing import NO_EVENT
from carehook.ledger.sql.tables import attempts, deliveries, endpoints, events, organizations
from carehook.ledger.states import DeliveryState, Ordering
from tests.conformance.store import LEASE, NOW, ORGANIZATION, Store, build_delivery, build_event, build_finished

REFERENCES = (
    (events.c.organization_id, organizations.c.id),
    (deliveries.c.organization_id, organizations.c.id),
    (deliveries.c.event_id, events.c.id),
    (deliveries.c.endpoint_id, endpoints.c.id),
    (attempts.c.delivery_id, deliveries.c.id),
)

Break = Callable[[StoredEvent, NewDelivery], tuple[StoredEvent, NewDelivery]]

BROKEN: dict[str, Break] = {
    "an event of an unknown organization": lambda event, delivery: (replace(event, organization_id="org_2"), delivery),
    "a delivery of an unknown organization": lambda event, delivery: (
        event,
        replace(delivery, organization_id="org_2"),
    ),
    "a delivery of an unknown event": lambda event, delivery: (event, replace(delivery, event_id=new_id(EVENT))),
    "a delivery to an unknown endpoint": lambda event, delivery: (event, replace(delivery, endpoint_id="ep_2")),
}


@pytest.fixture(params=BROKEN)
def broken(request: pytest.FixtureRequest) -> tuple[StoredEvent, NewDelivery]:
    """An event and its delivery, one of which refers to what is not there."""
    event = build_event()
    return BROKEN[request.param](event, build_delivery(event, "ep_1"))


async def count_rows(store: Store, table: sa.Table, *where: Any) -> int:
    async with store.database.read() as connection:
        return (await connection.execute(sa.select(sa.func.count()).select_from(table).where(*where))).scalar_one()


async def count_orphans(store: Store) -> int:
    return sum(
        [await count_rows(store, column.table, column.not_in(sa.select(target))) for column, target in REFERENCES]
    )


async def test_nothing_is_accepted_that_refers_to_nothing(
    store: Store, broken: tuple[StoredEvent, NewDelivery]
) -> None:
    await store.add_endpoints("ep_1")
    event, delivery = broken
    with pytest.raises(DanglingReference):
        await store.ledger.accept([ORGANIZATION, "org_2"], [], lambda _: Additions([event], [delivery], {}), NOW)
    assert await count_rows(store, events) == await count_rows(store, deliveries) == 0


async def test_nothing_is_added_that_refers_to_nothing(store: Store, broken: tuple[StoredEvent, NewDelivery]) -> None:
    await store.add_endpoints("ep_1")
    event, delivery = broken

    async def add() -> None:
        async with store.ledger.transaction() as tx:
            await tx.events.add([event])
            await tx.deliveries.add([delivery])

    with pytest.raises(DanglingReference):
        await add()
    assert await count_rows(store, events) == await count_rows(store, deliveries) == 0


async def test_a_refusal_tells_no_id(store: Store) -> None:
    with pytest.raises(DanglingReference) as raised:
        async with store.ledger.transaction() as tx:
            await tx.events.add([build_event()])
    assert str(raised.value) == "of the organizations that new rows refer to, 1 are not there"


async def test_an_attempt_is_recorded_of_a_delivery_that_is_there(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish("ep_1")
    (claimed,) = await store.claim()
    unknown = replace(claimed, id=new_id(DELIVERY))
    assert await store.queue.finish([build_finished(unknown), build_finished(claimed)], NOW) == [False, True]
    assert await count_rows(store, attempts) == 1
    assert await count_orphans(store) == 0


# ------------------------------------------------------------------------------------ what somebody removed


async def remove_event(store: Store, delivery_id: str) -> None:
    async with store.database.write() as connection:
        mine = sa.select(deliveries.c.event_id).where(deliveries.c.id == delivery_id).scalar_subquery()
        assert (await connection.execute(events.delete().where(events.c.id == mine))).rowcount == 1


@pytest.mark.parametrize("limits", [{}, {"max_in_flight": 10}, {"ordering": Ordering.PATIENT}])
async def test_a_delivery_whose_event_was_removed_is_given_up_and_holds_up_no_other(
    postgresql_store: Store, limits: dict[str, Any]
) -> None:
    store = postgresql_store
    await store.add_endpoints("ep_1", **limits)
    gone, follows, elsewhere = [(await store.accept("ep_1", patient=patient))[0] for patient in ("p", "p", "q")]
    await remove_event(store, gone)
    sent = [each.id for each in await store.claim()]
    assert gone not in sent
    later = NOW + LEASE
    assert await store.queue.recover_lost(later) == 1 + len(sent)
    assert await store.queue.recover_lost(later) == 0
    given_up = await store.delivery(gone)
    assert (given_up.state, given_up.due_at, given_up.finished_at) == (DeliveryState.EXHAUSTED, None, later)
    assert (given_up.lease_until, given_up.attempt_count) == (None, 1)
    [attempt] = await store.attempts(gone)
    assert (attempt.outcome, attempt.reason) == (AttemptOutcome.INTERRUPTED, NO_EVENT)
    assert {each.id for each in await store.claim(now=later)} == {follows, elsewhere}


async def test_what_was_cancelled_before_its_event_was_removed_stays_so(postgresql_store: Store) -> None:
    store = postgresql_store
    await store.add_endpoints("ep_1")
    [gone] = await store.publish("ep_1")
    await store.claim_one()
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.cancel(gone, NOW)
    await remove_event(store, gone)
    assert await store.queue.recover_lost(NOW + LEASE) == 1
    assert await store.states(gone) == [DeliveryState.CANCELLED]
