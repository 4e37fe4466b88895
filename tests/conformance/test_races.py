"""Transactions side by side on PostgreSQL: whatever their order, nothing waits for an endpoint that does not receive,
nothing is sent twice under one lease, and nothing deadlocks. SQLite has one writer, which rules this out.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import product
from typing import Any

import pytest
import sqlalchemy as sa

from carehook.directory.endpoints import Endpoints
from carehook.dispatch.addresses import AddressRules
from carehook.keyring import Keyring
from carehook.ledger.port import Transaction
from carehook.ledger.records import Additions, ClaimedDelivery, FinishedAttempt, Known
from carehook.ledger.sql import settling
from carehook.ledger.sql.tables import deliveries, endpoints
from carehook.ledger.states import DeliveryState, EndpointStatus, Ordering, Transition
from tests.conformance.store import (
    NOW,
    ORGANIZATION,
    SECOND,
    Store,
    build_delivery,
    build_delivery_for,
    build_endpoint,
    build_event,
    build_finished,
)

WEEK = timedelta(days=7)


async def accept(tx: Transaction) -> str:
    """Accept an event for `ep_1` as intake does: held where the endpoint does not receive."""
    [endpoint] = await tx.endpoints.recipients([ORGANIZATION])
    state = DeliveryState.PENDING if endpoint.status == EndpointStatus.ACTIVE else DeliveryState.HELD
    event = build_event()
    delivery = build_delivery(event, endpoint.id, state)
    await tx.events.add([event])
    await tx.deliveries.add([delivery])
    return delivery.id


async def test_what_is_accepted_before_a_pause_commits_is_held(postgresql_store: Store) -> None:
    store = postgresql_store
    await store.add_endpoints("ep_1")
    async with store.ledger.transaction() as tx:
        delivery_id = await accept(tx)
        pausing = asyncio.create_task(store.set_status("ep_1", EndpointStatus.PAUSED))
        await store.until_blocked()
    await pausing
    assert await store.states(delivery_id) == [DeliveryState.HELD]


async def test_what_is_accepted_after_a_pause_began_is_held(postgresql_store: Store) -> None:
    store = postgresql_store
    await store.add_endpoints("ep_1")
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def pause() -> None:
        async with store.ledger.transaction() as tx:
            endpoint = await tx.endpoints.get("ep_1", lock=True)
            assert endpoint is not None
            await tx.endpoints.update(replace(endpoint, status=EndpointStatus.PAUSED))
            begun.set()
            await go_on.wait()

    async def accept_meanwhile() -> str:
        async with store.ledger.transaction() as tx:
            return await accept(tx)

    pausing = asyncio.create_task(pause())
    await begun.wait()
    accepting = asyncio.create_task(accept_meanwhile())
    await store.until_blocked()
    go_on.set()
    await pausing
    assert await store.states(await accepting) == [DeliveryState.HELD]


async def test_what_is_accepted_while_a_pause_commits_is_held_though_the_endpoint_was_known(
    postgresql_store: Store,
) -> None:
    store = postgresql_store
    await store.add_endpoints("ep_1")
    publisher = await store.second()
    await publisher.accept("ep_1")
    async with store.ledger.transaction() as tx:
        endpoint = await tx.endpoints.get("ep_1", lock=True)
        assert endpoint is not None
        await tx.endpoints.update(replace(endpoint, status=EndpointStatus.PAUSED))
        accepting = asyncio.create_task(publisher.accept("ep_1"))
        await store.until_blocked()
    assert await store.states(*await accepting) == [DeliveryState.HELD]


async def test_what_is_accepted_while_a_result_disables_is_held(postgresql_store: Store) -> None:
    store = postgresql_store
    await store.add_endpoints("ep_1")
    publisher = await store.second()
    [sent] = await publisher.accept("ep_1")
    gone = build_finished(await store.claim_one(), Transition.RESCHEDULE, due_at=NOW, disable_reason="410 Gone")
    [waiting] = await publisher.accept("ep_1")
    async with store.ledger.transaction() as tx:
        # The result has the endpoint, and waits for this one of the deliveries that it will hold.
        assert await tx.deliveries.cancel(waiting, NOW)
        disabling = asyncio.create_task(store.queue.finish([gone], NOW))
        await store.until_blocked()
        accepting = asyncio.create_task(publisher.accept("ep_1"))
        await store.until_blocked(2)
    assert await disabling == [True]
    accepted = await accepting
    await store.settle("ep_1")
    states = await store.states(sent, waiting, *accepted)
    assert states == [DeliveryState.HELD, DeliveryState.CANCELLED, DeliveryState.HELD]


@pytest.mark.parametrize("revive", ["retry", "resend", "recover"])
async def test_what_is_revived_while_a_pause_commits_is_held(postgresql_store: Store, revive: str) -> None:
    store = postgresql_store
    await store.add_endpoints("ep_1")
    [delivery_id] = await store.publish("ep_1")
    await store.fail_once(Transition.EXHAUST)
    calls: dict[str, Callable[[Transaction], Awaitable[object]]] = {
        "retry": lambda tx: tx.deliveries.retry(delivery_id, NOW),
        "resend": lambda tx: tx.deliveries.resend([delivery_id], NOW),
        "recover": lambda tx: tx.deliveries.recover("ep_1", NOW, NOW),
    }
    async with store.ledger.transaction() as tx:
        await calls[revive](tx)
        pausing = asyncio.create_task(store.set_status("ep_1", EndpointStatus.PAUSED))
        await store.until_blocked()
    await pausing
    assert await store.states(delivery_id) == [DeliveryState.HELD]


async def test_an_endpoint_under_lock_is_changed_by_nobody_else(postgresql_store: Store) -> None:
    store = postgresql_store
    await store.add_endpoints("ep_1")
    async with store.ledger.transaction() as tx:
        endpoint = await tx.endpoints.get("ep_1", lock=True)
        assert endpoint is not None
        resuming = asyncio.create_task(store.set_status("ep_1", EndpointStatus.PAUSED))
        await store.until_blocked()
        assert await tx.endpoints.get("ep_1") == endpoint
    await resuming
    assert (await store.endpoint("ep_1")).status == EndpointStatus.PAUSED


async def test_of_two_first_facts_both_get_the_one_that_is_stored(postgresql_store: Store) -> None:
    store = postgresql_store

    async def put_meanwhile() -> bytes:
        async with store.ledger.transaction() as tx:
            return await tx.installation.put_first("key_check", b"second")

    async with store.ledger.transaction() as tx:
        assert await tx.installation.put_first("key_check", b"first") == b"first"
        second = asyncio.create_task(put_meanwhile())
        await store.until_blocked()
    assert await second == b"first"


async def test_a_result_waits_for_a_cancellation_and_does_not_undo_it(postgresql_store: Store) -> None:
    store = postgresql_store
    await store.add_endpoints("ep_1")
    [delivery_id] = await store.publish("ep_1")
    claimed = await store.claim_one()
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.cancel(delivery_id, NOW)
        finishing = asyncio.create_task(store.finish(claimed, Transition.RESCHEDULE, due_at=NOW))
        await store.until_blocked()
    assert await finishing
    assert await store.states(delivery_id) == [DeliveryState.CANCELLED]


async def test_a_claim_does_not_wait_for_what_another_transaction_holds(postgresql_store: Store) -> None:
    store = postgresql_store
    await store.add_endpoints("ep_1")
    locked, free = await store.publish("ep_1", "ep_1")
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.cancel(locked, NOW)
        assert [each.id for each in await store.claim()] == [free]


async def find_out_of_place(store: Store) -> set[str]:
    """The endpoints of which deliveries are not where the status has them."""
    is_pending = deliveries.c.state == DeliveryState.PENDING
    is_held = deliveries.c.state == DeliveryState.HELD
    is_active = endpoints.c.status == EndpointStatus.ACTIVE
    query = sa.select(endpoints.c.id).select_from(deliveries.join(endpoints))
    async with store.database.read() as connection:
        found = await connection.execute(query.where(sa.or_(is_pending & ~is_active, is_held & is_active)).distinct())
        return set(found.scalars())


async def settle_marked(store: Store) -> None:
    """Settle what is marked; what is not marked is in its place."""
    marked = await store.ledger.unsettled()
    assert await find_out_of_place(store) <= set(marked)
    for endpoint_id in marked:
        await store.settle(endpoint_id)
    assert await find_out_of_place(store) == set()
    assert await store.ledger.unsettled() == []


async def test_a_storm_of_everything_at_once_neither_deadlocks_nor_leaves_anything_astray(
    postgresql_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "PART", 3)
    store = postgresql_store
    names = [f"ep_{number}" for number in range(4)]
    await store.add_endpoints(*names)
    await store.publish(*names * 30)
    chance = random.Random(7)

    async def accept_for_all() -> None:
        async with store.ledger.transaction() as tx:
            for endpoint in await tx.endpoints.recipients([ORGANIZATION]):
                event = build_event()
                active = endpoint.status == EndpointStatus.ACTIVE
                state = DeliveryState.PENDING if active else DeliveryState.HELD
                await tx.events.add([event])
                await tx.deliveries.add([build_delivery(event, endpoint.id, state)])

    async def work() -> None:
        claimed = list(await store.claim(40, now=NOW + SECOND))
        chance.shuffle(claimed)
        finished = [
            build_finished(
                each,
                chance.choice([Transition.SUCCEED, Transition.EXHAUST]),
                disable_reason="410 Gone" if chance.random() < 0.1 else None,
            )
            for each in claimed
        ]
        half = len(claimed) // 2
        await asyncio.gather(
            store.queue.finish(finished[:half], NOW + SECOND),
            store.queue.give_back(claimed[half:]),
        )

    async def intervene() -> None:
        endpoint_id = chance.choice(names)
        await store.set_status(endpoint_id, chance.choice([EndpointStatus.PAUSED, EndpointStatus.ACTIVE]))
        async with store.ledger.transaction() as tx:
            await tx.deliveries.recover(endpoint_id, NOW, NOW)

    for _ in range(12):
        await asyncio.gather(*(each() for each in (accept_for_all, work, work, intervene, intervene) * 2))
        await settle_marked(store)


async def test_batches_that_disable_endpoints_of_each_other_do_not_deadlock(postgresql_store: Store) -> None:
    store = postgresql_store
    for _ in range(10):
        first, second = f"ep_{random.random()}", f"ep_{random.random()}"
        await store.add_endpoints(first, second)
        ids = await store.publish(*[first, second] * 20)
        leased = {each.id: each for each in await store.claim(now=NOW)}
        one, other = [leased[each] for each in ids[::4] + ids[1::4]], [leased[each] for each in ids[2::4] + ids[3::4]]
        results = await asyncio.gather(
            store.queue.finish(
                [
                    build_finished(
                        each, Transition.EXHAUST, disable_reason="410" if each.endpoint.id == first else None
                    )
                    for each in one
                ],
                NOW,
            ),
            store.queue.finish(
                [
                    build_finished(
                        each, Transition.EXHAUST, disable_reason="410" if each.endpoint.id == second else None
                    )
                    for each in other
                ],
                NOW,
            ),
        )
        assert all(counted for result in results for counted in result)


async def test_disabling_for_failures_waits_for_what_is_being_accepted_in_order(postgresql_store: Store) -> None:
    store = postgresql_store
    await store.add_endpoints("ep_1", ordering=Ordering.PATIENT)
    await store.publish(*["ep_1"] * 11)
    first, *tried, last = await store.claim()

    async def fail(*claimed: ClaimedDelivery, at: datetime) -> Sequence[bool]:
        results = [build_finished(each, Transition.EXHAUST, started_at=at) for each in claimed]
        return await store.queue.finish(results, at)

    await fail(first, at=NOW)
    await fail(*tried, at=NOW + WEEK)
    async with store.ledger.transaction() as tx:
        [endpoint] = await tx.endpoints.recipients([ORGANIZATION])
        disabling = asyncio.create_task(fail(last, at=NOW + WEEK + timedelta(days=1)))
        await store.until_blocked()
        event = build_event(patient_key="ann")
        delivery = build_delivery_for(event, endpoint)
        await tx.events.add([event])
        await tx.deliveries.add([delivery])
    assert all(await disabling)
    assert (await store.endpoint("ep_1")).status == EndpointStatus.DISABLED
    await store.settle("ep_1")
    assert await store.states(delivery.id) == [DeliveryState.HELD]


@pytest.mark.parametrize("ordering", list(Ordering))
async def test_switching_the_order_locks_deliveries_by_their_ids(postgresql_store: Store, ordering: Ordering) -> None:
    store = postgresql_store
    before = Ordering.NONE if ordering is Ordering.PATIENT else Ordering.PATIENT
    await store.add_endpoints("ep_1", ordering=before)
    [first] = await store.accept("ep_1", patient="ann", now=NOW)
    [second] = await store.accept("ep_1", patient="ann", now=NOW - SECOND)
    # Neither on the disk nor by when they are due does the first come first.
    for claimed in sorted(await store.claim(), key=lambda each: each.id, reverse=True):
        await store.queue.give_back([claimed])
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.cancel(first, NOW)
        switching = asyncio.create_task(store.change("ep_1", ordering=ordering))
        await store.until_blocked()
        assert await tx.deliveries.cancel(second, NOW)
    await switching
    assert await store.states(first, second) == [DeliveryState.CANCELLED, DeliveryState.CANCELLED]


async def test_resuming_locks_deliveries_before_the_lane(postgresql_store: Store) -> None:
    store = postgresql_store
    await store.add_endpoints("ep_1", status=EndpointStatus.PAUSED)
    [held, other] = await store.publish("ep_1", "ep_1", state=DeliveryState.HELD)
    directory = Endpoints(store.ledger, Keyring(bytes(32)), AddressRules(), lambda: NOW)
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.cancel(held, NOW)
        resuming = asyncio.create_task(directory.resume("ep_1"))
        await store.until_blocked()
        await tx.endpoints.close_circuit("ep_1")
    await resuming
    assert await store.states(held, other) == [DeliveryState.CANCELLED, DeliveryState.PENDING]


async def test_disabling_at_several_organizations_locks_them_by_their_ids(postgresql_store: Store) -> None:
    store = postgresql_store
    await store.add_organization("org_2")
    await store.add_organization()
    async with store.ledger.transaction() as tx:
        await tx.endpoints.add(build_endpoint("ep_1", organization_id="org_2"))
        await tx.endpoints.add(build_endpoint("ep_2"))
    await store.accept("ep_1", organization_id="org_2")
    await store.accept("ep_2")
    gone = [build_finished(each, Transition.EXHAUST, disable_reason="410 Gone") for each in await store.claim()]
    async with store.ledger.transaction() as tx:
        await tx.endpoints.recipients([ORGANIZATION])
        disabling = asyncio.create_task(store.queue.finish(gone, NOW))
        await store.until_blocked()
        assert [each.id for each in await tx.endpoints.recipients(["org_2"])] == ["ep_1"]
    assert await disabling == [True, True]


async def test_resending_to_several_endpoints_locks_their_lanes_by_their_ids(postgresql_store: Store) -> None:
    store = postgresql_store
    names = ["ep_2", "ep_1"]
    await store.add_endpoints(*names)
    ids = await store.publish(*names * 10)
    failed = [build_finished(each, Transition.EXHAUST) for each in await store.claim()]
    assert all(await store.queue.finish(failed, NOW))
    async with store.ledger.transaction() as tx:
        await tx.endpoints.close_circuit("ep_1")
        resending = asyncio.create_task(resend(store, ids))
        await store.until_blocked()
        await tx.endpoints.close_circuit("ep_2")
    assert await resending == len(ids)


async def resend(store: Store, ids: Sequence[str]) -> int:
    async with store.ledger.transaction() as tx:
        return await tx.deliveries.resend(ids, NOW)


class Storm:
    """Two processes that do everything at once to endpoints of every kind, of two organizations."""

    ORGANIZATIONS = (ORGANIZATION, "org_2")

    def __init__(self, stores: Sequence[Store], seed: int) -> None:
        self._stores = stores
        self._chance = random.Random(seed)
        self.accepted: list[str] = []
        self.endpoints: dict[str, str] = {}

    @property
    def store(self) -> Store:
        return self._chance.choice(self._stores)

    async def prepare(self) -> None:
        """Per organization two endpoints that ask for order, two that are limited and one that is neither."""
        kinds: list[dict[str, Any]] = [
            {"ordering": Ordering.PATIENT},
            {"ordering": Ordering.PATIENT, "max_in_flight": 3},
            {"max_in_flight": 2},
            {"rate_limit": 500.0},
            {},
        ]
        await self.store.add_organization()
        await self.store.add_organization("org_2")
        async with self.store.ledger.transaction() as tx:
            for number, (kind, organization_id) in enumerate(product(kinds, self.ORGANIZATIONS)):
                endpoint = build_endpoint(f"ep_{number}", organization_id=organization_id, **kind)
                await tx.endpoints.add(endpoint)
                self.endpoints[endpoint.id] = organization_id

    async def accept(self) -> None:
        """A batch of both organizations' events, about several patients, for each of their endpoints."""

        def decide(known: Known) -> Additions:
            made = [
                (event, build_delivery_for(event, endpoint))
                for endpoint in self._chance.sample(known.endpoints, len(known.endpoints))
                for event in [
                    build_event(
                        organization_id=endpoint.organization_id, patient_key=self._chance.choice(["ann", "bob", None])
                    )
                ]
            ]
            decided[:] = [delivery.id for _, delivery in made]
            return Additions([event for event, _ in made], [delivery for _, delivery in made], {})

        decided: list[str] = []
        await self.store.ledger.accept(self._chance.sample(self.ORGANIZATIONS, 2), [], decide, NOW)
        self.accepted += decided

    async def work(self) -> None:
        """Claim and report; most fail, so that circuits open, and after so long a time endpoints are disabled."""
        store = self.store
        claimed = list(await store.claim(40, now=NOW + WEEK))
        self._chance.shuffle(claimed)
        half = len(claimed) // 4
        await asyncio.gather(
            store.queue.give_back(claimed[:half]),
            store.queue.finish([self._end(each) for each in claimed[half:]], NOW + WEEK),
        )

    def _end(self, claimed: ClaimedDelivery) -> FinishedAttempt:
        transition = self._chance.choice([Transition.SUCCEED, Transition.RESCHEDULE, Transition.RESCHEDULE])
        gone = "410 Gone" if self._chance.random() < 0.02 else None
        due_at = NOW + WEEK if transition is Transition.RESCHEDULE else None
        return build_finished(claimed, transition, due_at=due_at, disable_reason=gone)

    async def switch(self) -> None:
        """Pause, or resume with a closed circuit as the directory does, and ask for order or no more."""
        store, endpoint_id = self.store, self._chance.choice(list(self.endpoints))
        if self._chance.random() < 0.3:
            await store.set_status(endpoint_id, EndpointStatus.PAUSED)
        await store.change(endpoint_id, ordering=self._chance.choice(list(Ordering)))
        await self.resume(endpoint_id)

    async def resume(self, endpoint_id: str) -> None:
        async with self.store.ledger.transaction() as tx:
            endpoint = await tx.endpoints.get(endpoint_id, lock=True)
            assert endpoint is not None
            await tx.endpoints.update(replace(endpoint, status=EndpointStatus.ACTIVE))
            await tx.endpoints.close_circuit(endpoint_id)
        await self.store.settle(endpoint_id)

    async def intervene(self) -> None:
        """Send some again, whose endpoints' circuits may be open, and cancel and retry others."""
        if not self.accepted:
            return
        some = self._chance.sample(self.accepted, min(10, len(self.accepted)))
        async with self.store.ledger.transaction() as tx:
            await tx.deliveries.resend(some, NOW)
        async with self.store.ledger.transaction() as tx:
            await tx.deliveries.cancel(some[0], NOW)
        async with self.store.ledger.transaction() as tx:
            await tx.deliveries.retry(some[0], NOW)

    async def settle(self) -> None:
        """Let everything go, and send it."""
        for endpoint_id in self.endpoints:
            await self.store.change(endpoint_id, max_in_flight=None, rate_limit=None)
            await self.resume(endpoint_id)
        for worker in self._stores:
            await worker.queue.recover_lost(NOW + 2 * WEEK)
        while claimed := await self.store.claim(1000, per_endpoint=1000, now=NOW + 2 * WEEK):
            assert all(await self.store.queue.finish([build_finished(each) for each in claimed], NOW + 2 * WEEK))


async def test_a_storm_of_order_limits_and_circuits_neither_deadlocks_nor_loses_anything(
    postgresql_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "PART", 3)
    store = postgresql_store
    storm = Storm([store, await store.second()], seed=11)
    await storm.prepare()
    for _ in range(8):
        steps = (storm.accept, storm.work, storm.switch, storm.accept, storm.work, storm.intervene, storm.work)
        await asyncio.gather(*(step() for step in steps * 2))
        await settle_marked(store)
    await storm.settle()
    # Nothing is retried that was cancelled in flight.
    assert set(await store.states(*storm.accepted)) <= {DeliveryState.SUCCEEDED, DeliveryState.CANCELLED}
    async with store.ledger.snapshot() as tx:
        backlog = await tx.deliveries.backlog()
    assert (backlog.waiting, backlog.in_flight, backlog.held) == (0, 0, 0)
