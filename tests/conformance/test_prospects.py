"""What decides when a delivery goes on is told of those that are not finished, and of the backlog as a whole."""

from __future__ import annotations

from collections.abc import Mapping

from carehook.ledger.records import Lane, Prospect
from carehook.ledger.states import DeliveryState, EndpointStatus, Ordering, Transition
from tests.conformance.store import NOW, SECOND, Store, build_finished

LATER = NOW + 60 * SECOND


async def find_prospects(store: Store, *delivery_ids: str) -> Mapping[str, Prospect]:
    async with store.ledger.snapshot() as tx:
        return await tx.deliveries.prospects(delivery_ids)


async def open_circuit(store: Store, endpoint_id: str) -> None:
    """Fail at the endpoint until its circuit opens."""
    await store.publish(*[endpoint_id] * 10)
    failed = [build_finished(each, Transition.RESCHEDULE, due_at=LATER) for each in await store.claim()]
    assert all(await store.queue.finish(failed, NOW + SECOND))


async def test_an_unfinished_delivery_has_its_endpoint_and_how_it_goes_there(store: Store) -> None:
    await store.add_endpoints("ep_1", "ep_2", max_in_flight=3, rate_limit=0.5)
    [one, other] = await store.publish("ep_1", "ep_2")
    found = await find_prospects(store, one, other)
    assert found == {
        one: Prospect(await store.endpoint("ep_1"), Lane(), None),
        other: Prospect(await store.endpoint("ep_2"), Lane(), None),
    }
    assert found[one].endpoint.rate_limit == 0.5


async def test_an_open_circuit_is_told_with_the_delivery(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await open_circuit(store, "ep_1")
    [waiting] = await store.publish("ep_1")
    found = await find_prospects(store, waiting)
    assert found[waiting].lane == await store.lane("ep_1")
    assert found[waiting].lane.opened_at is not None


async def test_what_is_finished_or_unknown_or_not_asked_for_is_left_out(store: Store) -> None:
    await store.add_endpoints("ep_1")
    [done, waiting, other] = await store.publish(*["ep_1"] * 3)
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.cancel(done, NOW)
    assert (await find_prospects(store, done, waiting, "dlv_unknown")).keys() == {waiting}
    assert await find_prospects(store) == {}
    assert (await store.delivery(other)).state is DeliveryState.PENDING


async def test_the_first_before_it_of_its_patient_is_named_until_it_is_finished(store: Store) -> None:
    await store.add_endpoints("ep_1", ordering=Ordering.PATIENT)
    [first] = await store.accept("ep_1", patient="ann")
    [neighbour] = await store.accept("ep_1", patient="ben")
    [second] = await store.accept("ep_1", patient="ann")
    [third] = await store.accept("ep_1", patient="ann")

    async def name_earlier() -> list[str | None]:
        found = await find_prospects(store, first, neighbour, second, third)
        return [
            found[each].earlier_delivery_id if each in found else None for each in (first, neighbour, second, third)
        ]

    assert await name_earlier() == [None, None, first, first]
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.cancel(first, NOW)
    assert await name_earlier() == [None, None, None, second]


async def test_a_held_delivery_has_the_reason_of_its_endpoint(store: Store) -> None:
    await store.add_endpoints("ep_1")
    [held] = await store.publish("ep_1")
    await store.change("ep_1", status_reason="it is gone")
    await store.set_status("ep_1", EndpointStatus.DISABLED)
    endpoint = (await find_prospects(store, held))[held].endpoint
    assert (endpoint.status, endpoint.status_reason) == (EndpointStatus.DISABLED, "it is gone")


async def test_the_backlog_counts_open_circuits_of_active_endpoints_and_disabled_endpoints(store: Store) -> None:
    await store.add_endpoints("ep_1", "ep_2", "ep_3", "ep_4")
    for endpoint_id in ("ep_1", "ep_2", "ep_3"):
        await open_circuit(store, endpoint_id)
    await store.set_status("ep_2", EndpointStatus.DISABLED)
    await store.set_status("ep_3", EndpointStatus.DELETED)
    async with store.ledger.snapshot() as tx:
        backlog = await tx.deliveries.backlog()
    assert (backlog.circuits_open, backlog.endpoints_disabled) == (1, 1)
