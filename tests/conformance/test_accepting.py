"""Accepting is one transaction: what is known is told to the decision, and what is decided is added, or nothing is."""

import asyncio

import pytest

from carehook.ledger.port import DuplicateKey
from carehook.ledger.records import Additions, Answered, Known, StoredEvent
from carehook.ledger.states import EndpointStatus
from tests.conformance.store import NOW, ORGANIZATION, Store, build_delivery, build_event

KEY = (ORGANIZATION, "key-1")
ANSWERED = Answered("fingerprint", {"event_ids": ["evt_1"], "deliveries": 1})


def decide_nothing(known: Known) -> Additions:
    return Additions((), (), {})


async def stored(store: Store, event: StoredEvent) -> bool:
    async with store.ledger.snapshot() as tx:
        return await tx.events.get(event.id) is not None


async def test_what_is_decided_is_added(store: Store) -> None:
    await store.add_endpoints("ep_1")
    event = build_event()
    additions = Additions([event], [build_delivery(event, "ep_1")], {KEY: ANSWERED})

    await store.ledger.accept([ORGANIZATION], [], lambda known: additions, NOW)

    async with store.ledger.snapshot() as tx:
        assert await tx.events.get(event.id) == event
        assert [each.endpoint_id for each in await tx.deliveries.of_event(event.id)] == ["ep_1"]
    assert await store.answered("key-1") == {"key-1"}


async def test_the_decision_is_told_what_is_known(store: Store) -> None:
    await store.add_endpoints("ep_1", "ep_2")
    await store.set_status("ep_2", EndpointStatus.DELETED)
    await store.ledger.accept([ORGANIZATION], [], lambda known: Additions((), (), {KEY: ANSWERED}), NOW)
    told: list[Known] = []

    def decide(known: Known) -> Additions:
        told.append(known)
        return decide_nothing(known)

    # Of the pairs, only those that are asked for: the other organization has no such key.
    await store.ledger.accept([ORGANIZATION, "org_none"], [KEY, ("org_none", "key-1")], decide, NOW)

    # A store may ask for a first decision before it knows of the keys.
    known = told[-1]
    assert known.organizations == {ORGANIZATION}
    assert [endpoint.id for endpoint in known.endpoints] == ["ep_1"]
    assert known.endpoints[0] == await store.endpoint("ep_1")
    assert known.answered == {KEY: ANSWERED}


async def test_an_exception_of_the_decision_passes_and_adds_nothing(store: Store) -> None:
    await store.add_endpoints("ep_1")

    def decide(known: Known) -> Additions:
        raise RuntimeError("undecided")

    with pytest.raises(RuntimeError, match="undecided"):
        await store.ledger.accept([ORGANIZATION], [], decide, NOW)
    await store.ledger.accept([ORGANIZATION], [], decide_nothing, NOW)


async def test_a_key_that_is_used_already_undoes_all_of_it(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.ledger.accept([ORGANIZATION], [], lambda known: Additions((), (), {KEY: ANSWERED}), NOW)
    event = build_event()
    additions = Additions([event], [build_delivery(event, "ep_1")], {KEY: ANSWERED})

    with pytest.raises(DuplicateKey):
        await store.ledger.accept([ORGANIZATION], [], lambda known: additions, NOW)

    assert not await stored(store, event)


async def test_a_cancelled_caller_leaves_all_of_it_or_nothing(store: Store) -> None:
    await store.add_endpoints("ep_1")
    event = build_event()
    additions = Additions([event], [build_delivery(event, "ep_1")], {})
    accepting = asyncio.create_task(store.ledger.accept([ORGANIZATION], [], lambda known: additions, NOW))
    await asyncio.sleep(0)

    accepting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await accepting

    # Whoever writes next does not meet a transaction that is half open.
    await store.ledger.accept([ORGANIZATION], [], decide_nothing, NOW)
    async with store.ledger.snapshot() as tx:
        assert len(await tx.deliveries.of_event(event.id)) == int(await stored(store, event))


async def test_what_is_accepted_wakes_the_queue(store: Store) -> None:
    await store.add_endpoints("ep_1")
    event = build_event()
    await store.claim()

    await store.ledger.accept(
        [ORGANIZATION], [], lambda known: Additions([event], [build_delivery(event, "ep_1")], {}), NOW
    )

    [claimed] = await store.claim()
    assert (claimed.event_id, claimed.body, claimed.accepted_at) == (event.id, event.body, event.created_at)
