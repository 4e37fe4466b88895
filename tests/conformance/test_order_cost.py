"""What an ordered endpoint costs does not depend on how much waits there, counted in what the database does."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from carehook.ledger.connections.sessions import Row, Session, SessionSqlite
from carehook.ledger.records import ClaimedDelivery
from carehook.ledger.sql import claiming, finishing, parking
from carehook.ledger.sql.queue_statements import SURVEY
from carehook.ledger.states import EndpointStatus, Ordering, Transition
from tests.conformance.store import LEASE, NOW, Store, build_finished

LITTLE, MUCH = 100, 4000
PATIENTS = 10


class SessionCounting(Session):
    """A session on PostgreSQL that counts the pages its statements touch, each explained before it is executed."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.dialect = session.dialect
        self.count = 0

    def fetch(self, text: str, parameters: Sequence[Any]) -> Sequence[Row]:
        """Count a statement, and execute it."""
        self._explain(text, parameters)
        return self._session.fetch(text, parameters)

    def execute_many(self, text: str, rows: Sequence[Sequence[Any]]) -> None:
        """Count a statement for the first of its rows, and execute it."""
        self._explain(text, rows[0])
        self._session.execute_many(text, rows)

    def _explain(self, text: str, parameters: Sequence[Any]) -> None:
        self._session.fetch("SAVEPOINT explained", ())
        [(found,)] = self._session.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}", parameters)
        self._session.fetch("ROLLBACK TO SAVEPOINT explained", ())
        [explained] = json.loads(found) if isinstance(found, str) else found
        self.count += explained["Plan"]["Shared Hit Blocks"] + explained["Plan"]["Shared Read Blocks"]


def count_effort(session: Session, work: Callable[[Session], Any]) -> tuple[Any, int]:
    """What `work` returns, and what it took: pages touched by PostgreSQL, or hundreds of SQLite's instructions."""
    if not isinstance(session, SessionSqlite):
        counting = SessionCounting(session)
        return work(counting), counting.count
    counts = [0]

    def step() -> None:
        counts[0] += 1

    session._connection.set_progress_handler(step, 100)
    try:
        return work(session), counts[0]
    finally:
        session._connection.set_progress_handler(None, 100)


async def build_backlog(store: Store, endpoint_id: str, count: int) -> list[ClaimedDelivery]:
    """So many due deliveries, as many of each patient, of whom one each is in flight, and the rest looked at."""
    await store.add_endpoints(endpoint_id, ordering=Ordering.PATIENT)
    for patient in [f"patient {number}" for number in range(PATIENTS)] * (count // 100):
        await store.accept(*[endpoint_id] * (100 // PATIENTS), patient=patient)
    leased: list[ClaimedDelivery] = []
    for _ in range(2 + count // parking.LOOKED_AT):
        leased += await store.claim()
    assert len(leased) == PATIENTS
    return leased


async def measure(store: Store, endpoint_id: str, count: int) -> dict[str, int]:
    """The effort of each thing that happens at an endpoint while so much waits."""
    failing, succeeding, ending, *_ = await build_backlog(store, endpoint_id, count)
    efforts: dict[str, int] = {}

    async def count_step(name: str, work: Callable[[Session], Any]) -> Any:
        found, efforts[name] = await store.database.run(lambda session: count_effort(session, work))
        return found

    def claim(session: Session) -> Sequence[ClaimedDelivery]:
        return claiming.claim(session, {endpoint_id: 8}, NOW, NOW + LEASE).deliveries

    # What was leased or parked leaves entries in PostgreSQL's indexes, which whoever meets them first marks as dead.
    await count_step("claim", claim)
    assert await count_step("claim", claim) == []
    assert endpoint_id not in dict(await count_step("survey", SURVEY.fetch))
    fails = build_finished(failing, Transition.RESCHEDULE, due_at=NOW + 2 * LEASE)
    await count_step("failure", lambda session: finishing.finish(session, [fails], NOW))
    succeeds = build_finished(succeeding)
    await count_step("success", lambda session: finishing.finish(session, [succeeds], NOW))
    assert len(await count_step("claim of the next", claim)) == 1
    await count_step("return", lambda session: finishing.give_back(session, [ending]))
    assert await count_step("recovery", lambda session: finishing.recover_some(session, NOW + LEASE)) == PATIENTS - 2
    await store.set_status(endpoint_id, EndpointStatus.PAUSED)
    return efforts


async def test_the_cost_of_an_order_does_not_depend_on_what_waits_in_it(sql_store: Store) -> None:
    little = await measure(sql_store, "ep_little", LITTLE)
    much = await measure(sql_store, "ep_much", MUCH)
    assert set(little) == set(much)
    dearer = {name: (little[name], much[name]) for name in much if much[name] > 2 * little[name] + 100}
    assert not dearer
