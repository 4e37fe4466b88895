"""Who receives is decided by the endpoints as they are when an event is accepted, whoever changed them, and where."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from carehook.ledger.records import Additions, Endpoint, Known
from carehook.ledger.states import DeliveryState, EndpointStatus, Ordering, Transition
from tests.conformance.store import NOW, ORGANIZATION, Store, build_endpoint


async def find_known(store: Store) -> dict[str, Endpoint]:
    """The organization's endpoints as the decision of an acceptance is told of them."""
    told: list[Known] = []

    def decide(known: Known) -> Additions:
        told.append(known)
        return Additions((), (), {})

    await store.ledger.accept([ORGANIZATION], [], decide, NOW)
    return {endpoint.id: endpoint for endpoint in told[-1].endpoints}


async def disable_by_a_result(store: Store) -> None:
    await store.publish("ep_1")
    claimed = next(each for each in await store.claim() if each.endpoint.id == "ep_1")
    assert await store.finish(claimed, Transition.RESCHEDULE, due_at=NOW, disable_reason="410 Gone")


CHANGES: dict[str, tuple[Callable[[Store], Awaitable[Any]], DeliveryState | None]] = {
    "paused": (lambda store: store.set_status("ep_1", EndpointStatus.PAUSED), DeliveryState.HELD),
    "deleted": (lambda store: store.set_status("ep_1", EndpointStatus.DELETED), None),
    "disabled by a result": (disable_by_a_result, DeliveryState.HELD),
    "changed": (lambda store: store.change("ep_1", url="https://other.example"), DeliveryState.PENDING),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_counts_for_all_that_is_accepted_after_it(store: Store, name: str) -> None:
    change, expected = CHANGES[name]
    publisher = await store.second()
    await store.add_endpoints("ep_1", "ep_2")
    assert len(await publisher.accept("ep_1", "ep_2")) == 2
    await change(store)
    made = await publisher.accept("ep_1", "ep_2")
    states = [DeliveryState.PENDING] if expected is None else [expected, DeliveryState.PENDING]
    assert await publisher.states(*made) == states


async def test_a_decision_is_told_of_every_field_as_it_is(store: Store) -> None:
    publisher = await store.second()
    await store.add_endpoints("ep_1")
    assert (await publisher.accept("ep_1"))[0]
    fields: list[dict[str, Any]] = [
        {"event_types": ("patient_consultation_finished",)},
        {"max_in_flight": 3, "rate_limit": 2.5},
        {"ordering": Ordering.PATIENT},
        {"sealed_secrets": b"\x00new"},
    ]
    for changed in fields:
        await store.change("ep_1", **changed)
        known = await find_known(publisher)
        assert known == {"ep_1": await store.endpoint("ep_1")}


async def test_a_new_endpoint_receives_what_is_accepted_after_it(store: Store) -> None:
    publisher = await store.second()
    await store.add_endpoints("ep_1")
    assert len(await publisher.accept("ep_1", "ep_2")) == 1
    await store.add_endpoints("ep_2")
    assert len(await publisher.accept("ep_1", "ep_2")) == 2


async def test_a_resumed_endpoint_receives_what_is_accepted_after_it(store: Store) -> None:
    publisher = await store.second()
    await store.add_endpoints("ep_1", status=EndpointStatus.PAUSED)
    [held] = await publisher.accept("ep_1")
    await store.set_status("ep_1", EndpointStatus.ACTIVE)
    [pending] = await publisher.accept("ep_1")
    assert await store.states(held, pending) == [DeliveryState.PENDING, DeliveryState.PENDING]


async def test_an_organization_that_is_new_is_known(store: Store) -> None:
    publisher = await store.second()
    assert await publisher.accept("ep_1") == []
    await store.add_endpoints("ep_1")
    assert len(await publisher.accept("ep_1")) == 1


async def test_a_change_is_of_its_organization_alone(store: Store) -> None:
    publisher = await store.second()
    await store.add_endpoints("ep_1")
    await store.add_organization("org_2")
    async with store.ledger.transaction() as tx:
        await tx.endpoints.add(build_endpoint("ep_9", organization_id="org_2"))
    assert len(await publisher.accept("ep_1")) == 1
    assert len(await publisher.accept("ep_9", organization_id="org_2")) == 1
    await store.set_status("ep_9", EndpointStatus.PAUSED)
    [here] = await publisher.accept("ep_1")
    [there] = await publisher.accept("ep_9", organization_id="org_2")
    assert await store.states(here, there) == [DeliveryState.PENDING, DeliveryState.HELD]


async def test_what_is_claimed_after_a_change_comes_with_the_endpoint_as_it_is(store: Store) -> None:
    worker = await store.second()
    await store.add_endpoints("ep_1")
    await store.publish("ep_1", "ep_1", "ep_1")
    [before] = await worker.claim(1)
    await store.change("ep_1", url="https://other.example", sealed_secrets=b"\x00new")
    [after] = await worker.claim(1)
    assert before.endpoint.revision < after.endpoint.revision
    assert after.endpoint == await store.endpoint("ep_1")
