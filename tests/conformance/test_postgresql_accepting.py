"""Accepting by one statement, with endpoints known from memory: no change of them slips past it, however it races."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from carehook.ledger.connections.postgresql import StatementError
from carehook.ledger.port import DuplicateKey, Transaction
from carehook.ledger.postgresql.accept import AcceptPostgresql
from carehook.ledger.records import Additions, Answered, Known, StoredEvent
from carehook.ledger.sql.tables import deliveries, endpoints, idempotency_keys
from carehook.ledger.states import DeliveryState, EndpointStatus, Ordering
from tests.conformance.store import NOW, ORGANIZATION, Store, build_delivery_for, build_event
from tests.stores import PowerCut

KEY = (ORGANIZATION, "key")


@pytest.fixture
async def known(postgresql_store: Store) -> Store:
    """A store whose endpoint `ep_1` its ledger knows from memory."""
    await postgresql_store.add_endpoints("ep_1")
    await postgresql_store.accept("ep_1")
    return postgresql_store


async def pause(tx: Transaction) -> None:
    """Pause the endpoint, within a transaction that goes on."""
    endpoint = await tx.endpoints.get("ep_1", lock=True)
    assert endpoint is not None
    await tx.endpoints.update(replace(endpoint, status=EndpointStatus.PAUSED))


@asynccontextmanager
async def use_the_key(store: Store, *, in_vain: bool = False) -> AsyncIterator[None]:
    """Use the idempotency key in a transaction that is committed when the block ends, or undone where it is in vain."""
    answer = {"organization_id": KEY[0], "key": KEY[1], "fingerprint": "first", "answer": {}, "created_at": NOW}
    with contextlib.suppress(PowerCut):
        async with store.database.write() as connection:
            await connection.execute(idempotency_keys.insert(), answer)
            yield
            if in_vain:
                raise PowerCut


async def test_once_the_endpoints_are_known_one_statement_is_all(known: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known.database, "run", None)
    assert len(await known.accept("ep_1")) == 1


async def test_what_is_accepted_while_a_pause_commits_is_held(known: Store) -> None:
    other = await known.second()
    async with known.ledger.transaction() as tx:
        await pause(tx)
        accepting = [asyncio.create_task(each.accept("ep_1")) for each in (known, other)]
        await known.until_blocked()
    for made in await asyncio.gather(*accepting):
        assert await known.states(*made) == [DeliveryState.HELD]


async def test_what_is_accepted_while_a_pause_is_undone_is_due(known: Store) -> None:
    with contextlib.suppress(PowerCut):
        async with known.ledger.transaction() as tx:
            await pause(tx)
            accepting = asyncio.create_task(known.accept("ep_1"))
            await known.until_blocked()
            raise PowerCut
    assert await known.states(*await accepting) == [DeliveryState.PENDING]


async def test_a_pause_waits_for_what_is_being_accepted_and_holds_it(known: Store) -> None:
    made: list[str] = []

    def decide(told: Known) -> Additions:
        event = build_event()
        delivery = build_delivery_for(event, told.endpoints[0])
        made.append(delivery.id)
        return Additions([event], [delivery], {KEY: Answered("fingerprint", {})})

    async with use_the_key(known, in_vain=True):
        # It holds the organization, and waits to see whether the key was used.
        accepting = asyncio.create_task(known.ledger.accept([ORGANIZATION], [KEY], decide, NOW))
        await known.until_blocked()
        pausing = asyncio.create_task(known.set_status("ep_1", EndpointStatus.PAUSED))
        await known.until_blocked(2)
    await asyncio.gather(accepting, pausing)
    assert await known.states(*made) == [DeliveryState.HELD]


async def test_of_two_first_answers_at_once_the_second_begins_anew(known: Store) -> None:
    second = {KEY: Answered("second", {})}
    async with use_the_key(known):
        accepting = asyncio.create_task(
            known.ledger.accept([ORGANIZATION], [KEY], lambda _: Additions([build_event()], [], second), NOW)
        )
        await known.until_blocked()
    with pytest.raises(DuplicateKey):
        await accepting


async def test_who_finds_changes_again_and_again_reads_under_lock(
    known: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    outdated: dict[str, Any] = {}
    look_up = AcceptPostgresql._look_up

    async def look_up_too_early(self: AcceptPostgresql, organization_ids: Any) -> dict[str, Any]:
        if not outdated:
            outdated.update(await look_up(self, organization_ids))
        return outdated

    monkeypatch.setattr(AcceptPostgresql, "_look_up", look_up_too_early)
    before = await known.accept("ep_1")
    await known.set_status("ep_1", EndpointStatus.PAUSED)
    after = await known.accept("ep_1")
    assert await known.states(*before, *after) == [DeliveryState.HELD, DeliveryState.HELD]


async def test_a_caller_that_is_cancelled_is_told_so_when_it_is_stored(known: Store) -> None:
    event = build_event()
    additions = Additions([event], [], {KEY: Answered("fingerprint", {})})
    async with use_the_key(known, in_vain=True):
        accepting = asyncio.create_task(known.ledger.accept([ORGANIZATION], [KEY], lambda _: additions, NOW))
        await known.until_blocked()
        accepting.cancel()
        await asyncio.sleep(0)
        assert not accepting.done()
    with pytest.raises(asyncio.CancelledError):
        await accepting
    async with known.ledger.snapshot() as tx:
        assert await tx.events.get(event.id) == event


async def test_positions_grow_by_one_however_many_accept(postgresql_store: Store) -> None:
    store = postgresql_store
    await store.add_endpoints("ep_1", "ep_2")
    for each in ("ep_1", "ep_2"):
        await store.change(each, ordering=Ordering.PATIENT)
    publishers = [store, await store.second(), await store.second()]
    rounds = [publisher.accept("ep_1", "ep_2", "ep_1", patient="ann") for publisher in publishers for _ in range(10)]
    await asyncio.gather(*rounds)
    query = sa.select(deliveries.c.endpoint_id, deliveries.c.position).order_by(
        deliveries.c.endpoint_id, deliveries.c.position
    )
    async with store.database.read() as connection:
        found = [tuple(row) for row in await connection.execute(query)]
    assert found == [*(("ep_1", place) for place in range(1, 61)), *(("ep_2", place) for place in range(1, 31))]


async def test_a_refused_statement_shows_nothing_of_what_was_to_be_stored(known: Store) -> None:
    event = build_event(body=b"the body")
    await known.ledger.accept([ORGANIZATION], [], lambda _: Additions([event], [], {}), NOW)
    wrong: list[Any] = [event, build_event(occurred_on="the body"), build_event(type="the\0body")]
    for each in wrong:
        with pytest.raises(StatementError) as raised:
            await known.ledger.accept([ORGANIZATION], [], partial(_add, each), NOW)
        assert "the" not in str(raised.value)
        assert event.id not in str(raised.value)
    assert len(await known.accept("ep_1")) == 1


def _add(event: StoredEvent, _: Known) -> Additions:
    return Additions([event], [], {})


async def test_a_storm_of_changes_leaves_nothing_astray(postgresql_store: Store) -> None:
    store = postgresql_store
    names = [f"ep_{number}" for number in range(4)]
    await store.add_endpoints(*names)
    publishers = [store, await store.second(), await store.second()]
    chance = random.Random(11)
    over = asyncio.Event()

    async def publish(publisher: Store) -> int:
        count = 0
        while not over.is_set():
            count += len(await publisher.accept(*chance.choices(names, k=5)))
        return count

    publishing = [asyncio.create_task(publish(each)) for each in publishers]
    for _ in range(60):
        status = chance.choice([EndpointStatus.PAUSED, EndpointStatus.ACTIVE])
        await store.set_status(chance.choice(names), status)
        assert await _count_astray(store) == 0
    over.set()
    assert min(await asyncio.gather(*publishing)) > 0
    assert await _count_astray(store) == 0


async def _count_astray(store: Store) -> int:
    """Deliveries that wait for an endpoint that does not receive, or are held for one that does."""
    is_active = endpoints.c.status == EndpointStatus.ACTIVE
    astray = (deliveries.c.state == DeliveryState.PENDING) & ~is_active | (
        deliveries.c.state == DeliveryState.HELD
    ) & is_active
    query = sa.select(sa.func.count()).select_from(deliveries.join(endpoints)).where(astray)
    async with store.database.read() as connection:
        found: int = (await connection.execute(query)).scalar_one()
    return found
