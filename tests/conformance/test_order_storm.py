"""Everything at once at ordered endpoints, by several processes, in an order that chance decides (PostgreSQL).

SQLite's single writer rules out what is looked for here: a delivery that is parked just when what it waits for ends,
two of a patient in flight, and transactions that wait for each other.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import sqlalchemy as sa

from carehook.ledger.records import ClaimedDelivery, FinishedAttempt
from carehook.ledger.states import EndpointStatus, Ordering, Transition
from tests.conformance.store import NOW, SECOND, Store, build_finished
from tests.conformance.test_parking import find_stranded

ALWAYS, CHANGING = "ep_always", "ep_changing"
PATIENTS = ("ann", "bob", None)
LONG, SHORT = timedelta(days=1), 2 * SECOND
STEPS = 50
WORKERS = 3

TOGETHER = sa.text(f"""
    SELECT order_key FROM deliveries
    WHERE endpoint_id = '{ALWAYS}' AND order_key IS NOT NULL AND lease_until IS NOT NULL
    GROUP BY order_key HAVING count(*) > 1
""")
UNFINISHED = sa.text("SELECT id, state, due_at FROM deliveries WHERE state IN ('pending', 'held')")
POSITIONS = sa.text(f"""
    SELECT order_key, id FROM deliveries
    WHERE endpoint_id = '{ALWAYS}' AND order_key IS NOT NULL ORDER BY order_key, position
""")


class Storm:
    """Processes that accept, deliver and intervene, each on connections of its own.

    Time is counted in seconds that pass with each claim. A worker that dies leaves leases that soon run out; those of
    the others last to the end.
    """

    def __init__(self, processes: Sequence[Store], seed: int) -> None:
        self._processes = processes
        self._chance = random.Random(seed)
        self._now = NOW
        self._accepted: list[str] = []
        # What somebody asked for, or what was given up, goes out of its turn.
        self._out_of_turn: set[str] = set()
        self._succeeded: list[str] = []
        self._is_over = False

    async def rage(self) -> None:
        """Do everything at once for a while, and look all the time at whether the laws hold."""
        steps = [self._accept, self._change, self._recover, *[self._intervene] * 2, *[self._work] * WORKERS]
        tasks = [self._repeat(step) for step in steps]
        watching = asyncio.create_task(self._watch())
        await asyncio.gather(*tasks)
        self._is_over = True
        await watching

    async def drain(self) -> None:
        """Let everything go, and send it."""
        store = self._processes[0]
        for endpoint_id in (ALWAYS, CHANGING):
            await store.set_status(endpoint_id, EndpointStatus.ACTIVE)
            async with store.ledger.transaction() as tx:
                await tx.endpoints.close_circuit(endpoint_id)
        self._now += 2 * LONG
        await store.queue.recover_lost(self._now)
        while claimed := await store.claim(now=self._now):
            finished = [build_finished(each) for each in claimed]
            self._note(finished)
            assert all(await store.queue.finish(finished, self._now))

    async def find_sequences(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Of each patient, what succeeded in its turn: as it was accepted, and as it went."""
        accepted: defaultdict[str, list[str]] = defaultdict(list)
        async with self._processes[0].database.read() as connection:
            for patient, delivery_id in await connection.execute(POSITIONS):
                if delivery_id not in self._out_of_turn:
                    accepted[patient].append(delivery_id)
        places = {delivery_id: place for place, delivery_id in enumerate(self._succeeded)}
        return accepted, {patient: sorted(ids, key=places.__getitem__) for patient, ids in accepted.items()}

    async def _repeat(self, step: Callable[[Store], Awaitable[None]]) -> None:
        for _ in range(STEPS):
            await step(self._chance.choice(self._processes))
            await asyncio.sleep(self._chance.random() / 500)

    async def _accept(self, store: Store) -> None:
        names = self._chance.choices([ALWAYS, CHANGING], k=self._chance.randint(1, 6))
        self._accepted += await store.accept(*names, patient=self._chance.choice(PATIENTS), now=self._now)

    async def _work(self, store: Store) -> None:
        """Claim, and report, give back or die. What dies may still report, too late or just in time."""
        self._now += SECOND
        now, dies = self._now, self._chance.random() < 0.3
        claimed = list(await store.claim(8, per_endpoint=4, now=now, lease=SHORT if dies else LONG))
        await self._look(store)
        await self._interfere(claimed)
        await asyncio.sleep(self._chance.random() / 50)
        if dies and self._chance.random() < 0.5:
            return
        other = self._chance.choice(self._processes)
        if self._chance.random() < 0.2:
            await other.queue.give_back(claimed)
            return
        finished = [self._end(each) for each in claimed]
        if dies:
            # Whether it counted is known too late to say which was first.
            self._out_of_turn.update(each.id for each in claimed)
        self._note(finished)
        counted = await other.queue.finish(finished, now)
        assert dies or all(counted)

    def _end(self, claimed: ClaimedDelivery) -> FinishedAttempt:
        match self._chance.choices(["succeed", "fail", "exhaust"], [6, 3, 1]):
            case ["succeed"]:
                return build_finished(claimed)
            case ["fail"]:
                later = self._now + self._chance.randint(0, 3) * SECOND
                return build_finished(claimed, Transition.RESCHEDULE, due_at=later)
        self._out_of_turn.add(claimed.id)
        return build_finished(claimed, Transition.EXHAUST)

    def _note(self, finished: Sequence[FinishedAttempt]) -> None:
        # Before it is recorded, for then another may already be on its way.
        self._succeeded += [each.delivery_id for each in finished if each.succeeded]

    async def _recover(self, store: Store) -> None:
        await store.queue.recover_lost(self._now)

    async def _intervene(self, store: Store) -> None:
        if not self._accepted:
            return
        some = self._chance.sample(self._accepted[-20:], min(3, len(self._accepted)))
        match self._chance.choice(["cancel", "resend", "resend", "retry", "recover"]):
            case "cancel":
                await self._cancel(store, some[0])
            case "resend":
                await self._resend(store, some)
            case "retry":
                self._out_of_turn.add(some[0])
                async with store.ledger.transaction() as tx:
                    await tx.deliveries.retry(some[0], self._now)
            case _:
                async with store.ledger.transaction() as tx:
                    await tx.deliveries.recover(self._chance.choice([ALWAYS, CHANGING]), NOW, self._now)

    async def _interfere(self, in_flight: Sequence[ClaimedDelivery]) -> None:
        """Cancel what is in flight, or send again what may come before it."""
        store = self._chance.choice(self._processes)
        if in_flight and self._chance.random() < 0.3:
            await self._cancel(store, in_flight[0].id)
        elif self._succeeded and self._chance.random() < 0.3:
            await self._resend(store, self._succeeded[-6:])

    async def _resend(self, store: Store, delivery_ids: Sequence[str]) -> None:
        self._out_of_turn.update(delivery_ids)
        async with store.ledger.transaction() as tx:
            await tx.deliveries.resend(delivery_ids, self._now)

    async def _cancel(self, store: Store, delivery_id: str) -> None:
        self._out_of_turn.add(delivery_id)
        async with store.ledger.transaction() as tx:
            await tx.deliveries.cancel(delivery_id, self._now)

    async def _change(self, store: Store) -> None:
        """Pause and resume, close the circuit, and ask for order or no more."""
        name = self._chance.choice([ALWAYS, CHANGING])
        if self._chance.random() < 0.3:
            await store.set_status(name, EndpointStatus.PAUSED)
            await store.set_status(name, EndpointStatus.ACTIVE)
        if self._chance.random() < 0.3:
            async with store.ledger.transaction() as tx:
                await tx.endpoints.close_circuit(name)
        if self._chance.random() < 0.3:
            await store.change(CHANGING, ordering=self._chance.choice(list(Ordering)))

    async def _watch(self) -> None:
        while not self._is_over:
            await self._look(self._processes[0])
            await asyncio.sleep(0.01)

    async def _look(self, store: Store) -> None:
        """No two of a patient are in flight, and what is parked waits for something."""
        async with store.database.read() as connection:
            assert list((await connection.execute(TOGETHER)).scalars()) == []
        assert await find_stranded(store) == []


async def test_a_storm_keeps_every_order_and_strands_nothing(postgresql_store: Store) -> None:
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    await postgresql_store.add_endpoints(ALWAYS, CHANGING, ordering=Ordering.PATIENT)
    processes = [postgresql_store, await postgresql_store.second(), await postgresql_store.second()]
    storm = Storm(processes, seed)
    async with asyncio.timeout(100):
        await storm.rage()
        await storm.drain()
    async with postgresql_store.database.read() as connection:
        assert (await connection.execute(UNFINISHED)).all() == []
    accepted, went = await storm.find_sequences()
    assert accepted
    assert went == accepted
