"""However long the history is, what happens often looks only at the rows it is about."""

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import patch

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from carehook.ledger.connections import sessions
from carehook.ledger.connections.postgresql import Connections
from carehook.ledger.connections.sessions import Row, SessionSqlite
from carehook.ledger.port import Transaction
from carehook.ledger.records import ClaimedDelivery, DeliveryFilter, PageRequest
from carehook.ledger.states import DeliveryState, EndpointStatus, Ordering, Transition
from tests.conformance.store import LEASE, NOW, ORGANIZATION, SECOND, Store, build_delivery, build_event, build_finished

HISTORY = 4000

# Reads every row of a table that grows with every event, or every entry of an index of all its rows.
FULL_SCAN = re.compile(
    r"SCAN (?:deliveries|events|attempts|earlier|over|next)"
    r"(?! USING (?:COVERING )?INDEX ix_deliveries_(?:due|leased|set_aside))"
    r"|Seq Scan on (?:deliveries|events|attempts)"
)


@dataclass(frozen=True)
class Statement:
    """A statement that was executed, with its parameters, and whether that was by PostgreSQL's driver itself."""

    text: str
    parameters: Sequence[Any]
    is_direct: bool = False

    @property
    def is_explained(self) -> bool:
        return self.text.lstrip().startswith(("SELECT", "UPDATE", "WITH", "DELETE"))


@contextmanager
def record_statements() -> Iterator[list[Statement]]:
    """The statements that are executed meanwhile, by SQLAlchemy and beside it."""
    recorded: list[Statement] = []

    def record(_: Any, __: Any, text: str, parameters: Any, ___: Any, many: bool) -> None:
        recorded.append(Statement(text, parameters[0] if many else parameters))

    class RecordingSession(SessionSqlite):
        """A session on Python's own driver."""

        def fetch(self, text: str, parameters: Sequence[Any]) -> Sequence[Row]:
            recorded.append(Statement(text, parameters))
            return super().fetch(text, parameters)

        def execute_many(self, text: str, rows: Sequence[Sequence[Any]]) -> None:
            recorded.append(Statement(text, rows[0]))
            super().execute_many(text, rows)

    fetch = Connections.fetch

    async def fetch_recorded(self: Connections, statement: str, *arguments: Any, **options: Any) -> Any:
        recorded.append(Statement(statement, arguments, is_direct=True))
        return await fetch(self, statement, *arguments, **options)

    event.listen(sa.Engine, "before_cursor_execute", record)
    try:
        with (
            patch.object(sessions, "SessionSqlite", RecordingSession),
            patch.object(Connections, "fetch", fetch_recorded),
        ):
            yield recorded
    finally:
        event.remove(sa.Engine, "before_cursor_execute", record)


async def explain(store: Store, action: Callable[[], Awaitable[Any]]) -> str:
    """How the database goes about each statement of `action`."""
    with record_statements() as recorded:
        await action()
    explained = [statement for statement in recorded if statement.is_explained]
    assert explained
    plans: list[str] = []
    for statement in explained:
        plans += [statement.text, *await fetch_plan(store, statement)]
    return "\n".join(plans)


async def fetch_plan(store: Store, statement: Statement) -> list[str]:
    keyword = "EXPLAIN QUERY PLAN" if store.database.is_sqlite else "EXPLAIN"
    explaining = f"{keyword} {statement.text}"
    if statement.is_direct:
        # On a connection of the same settings, by which PostgreSQL chooses its plans.
        return [str(row[-1]) for row in await store.database.connections.fetch(explaining, *statement.parameters)]
    async with store.database.write() as connection:
        rows = await connection.exec_driver_sql(explaining, tuple(statement.parameters))
        return [str(row[-1]) for row in rows]


@pytest.fixture
async def long_history(store: Store) -> Store:
    """A store with a long history of `ep_old`, and a little to do for `ep_1`, `ep_2` and `ep_3`."""
    await store.add_endpoints("ep_old", "ep_1", "ep_2", "ep_3")
    new = [build_event() for _ in range(HISTORY)]
    async with store.ledger.transaction() as tx:
        await tx.events.add(new)
        await tx.deliveries.add([build_delivery(each, "ep_old", DeliveryState.SUCCEEDED) for each in new])
    await store.publish("ep_1", "ep_1", "ep_2", "ep_3", due_at=NOW)
    [exhausted, *_] = await store.claim(3, per_endpoint=1)
    await store.finish(exhausted, Transition.EXHAUST)
    await store.set_status("ep_3", EndpointStatus.PAUSED)
    if not store.database.is_sqlite:
        async with store.database.write() as connection:
            await connection.execute(sa.text("ANALYZE"))
    return store


async def test_a_claim_goes_by_the_index_of_what_waits(long_history: Store) -> None:
    plan = await explain(long_history, long_history.claim)
    assert "ix_deliveries_due" in plan
    assert not FULL_SCAN.search(plan), plan


async def test_a_result_goes_by_the_ids(long_history: Store) -> None:
    [claimed] = await long_history.claim(now=NOW + SECOND)
    finished = build_finished(claimed, Transition.EXHAUST, disable_reason="410 Gone")
    plan = await explain(long_history, lambda: long_history.queue.finish([finished], NOW))
    assert not FULL_SCAN.search(plan), plan


async def test_what_changed_of_what_is_claimed_is_found_by_the_ids(long_history: Store) -> None:
    claimed = await long_history.claim(now=NOW + SECOND)
    plan = await explain(long_history, lambda: long_history.queue.find_changed(claimed))
    assert re.search("pk_deliveries|sqlite_autoindex_deliveries_1", plan), plan
    assert "ix_deliveries" not in plan
    assert not FULL_SCAN.search(plan), plan


async def test_lost_leases_are_found_by_the_index_of_leases(long_history: Store) -> None:
    plan = await explain(long_history, lambda: long_history.queue.recover_lost(NOW + LEASE))
    assert "ix_deliveries_leased" in plan
    assert not FULL_SCAN.search(plan), plan


async def test_the_backlog_reads_the_partial_indexes_alone(long_history: Store) -> None:
    plan = await explain_in_transaction(long_history, lambda tx: tx.deliveries.backlog())
    assert all(f"ix_deliveries_{name}" in plan for name in ("due", "leased", "set_aside"))
    assert not FULL_SCAN.search(plan), plan


@pytest.mark.parametrize("only", [DeliveryFilter(), DeliveryFilter(endpoint_id="ep_old")])
async def test_a_page_goes_by_the_index_of_the_organization(long_history: Store, only: DeliveryFilter) -> None:
    async with long_history.ledger.snapshot() as tx:
        cursor = (await tx.deliveries.page(ORGANIZATION, only, PageRequest(10))).next_cursor
    request = PageRequest(10, cursor)
    plan = await explain_in_transaction(long_history, lambda tx: tx.deliveries.page(ORGANIZATION, only, request))
    # PostgreSQL knows that there is but one organization here, and may go by the ids.
    assert re.search("ix_deliveries_organization_id|pk_deliveries", plan)
    assert not FULL_SCAN.search(plan), plan


MOVES: dict[str, Callable[[Transaction], Awaitable[Any]]] = {
    "cancel": lambda tx: tx.deliveries.cancel("dlv_1", NOW),
    "count_unfinished": lambda tx: tx.deliveries.count_unfinished("ep_1", at_most=10),
    "retry": lambda tx: tx.deliveries.retry("dlv_1", NOW),
    "recover": lambda tx: tx.deliveries.recover("ep_1", NOW, NOW),
}


@pytest.mark.parametrize("name", MOVES)
async def test_an_intervention_leaves_the_history_unread(long_history: Store, name: str) -> None:
    plan = await explain_in_transaction(long_history, MOVES[name])
    assert not FULL_SCAN.search(plan), plan


@pytest.mark.parametrize("status", EndpointStatus)
async def test_settling_goes_by_the_partial_indexes(long_history: Store, status: EndpointStatus) -> None:
    await long_history.change("ep_1", status=status)
    plan = await explain(long_history, lambda: long_history.ledger.settle("ep_1", NOW, waits=False))
    assert "ix_deliveries" in plan
    assert not FULL_SCAN.search(plan), plan


async def test_a_release_leaves_the_history_unread_where_most_of_it_is_held(postgresql_store: Store) -> None:
    store = postgresql_store
    await store.add_endpoints("ep_1", status=EndpointStatus.PAUSED)
    await store.accept(*["ep_1"] * HISTORY)
    async with store.database.write() as connection:
        await connection.execute(sa.text("ANALYZE"))
    await store.change("ep_1", status=EndpointStatus.ACTIVE)
    plan = await explain(store, lambda: store.ledger.settle("ep_1", NOW, waits=False))
    # From the oldest on, through all that was released before.
    assert not re.search(r"Scan using pk_deliveries.*\n +Filter", plan), plan
    assert "using ix_deliveries_set_aside" in plan


async def test_resending_goes_by_the_ids(long_history: Store) -> None:
    ids = await long_history.publish("ep_1", "ep_2")
    async with long_history.ledger.transaction() as tx:
        await tx.deliveries.cancel(ids[0], NOW)
    plan = await explain_in_transaction(long_history, lambda tx: tx.deliveries.resend(ids, NOW))
    assert not FULL_SCAN.search(plan), plan


async def explain_in_transaction(store: Store, action: Callable[[Transaction], Awaitable[Any]]) -> str:
    async def run() -> None:
        async with store.ledger.transaction() as tx:
            await action(tx)

    return await explain(store, run)


@pytest.fixture
async def lanes(long_history: Store) -> Store:
    """The same with endpoints that have limits, an order and failures, and something due for each."""
    store = long_history
    await store.add_endpoints("ep_limited", max_in_flight=5, rate_limit=100.0)
    await store.add_endpoints("ep_ordered", ordering=Ordering.PATIENT)
    await store.accept("ep_limited", "ep_limited", now=NOW)
    for patient in ("ann", "bob"):
        await store.accept(*["ep_ordered"] * 40, patient=patient, now=NOW)
    if not store.database.is_sqlite:
        async with store.database.write() as connection:
            await connection.execute(sa.text("ANALYZE"))
    return store


async def test_a_claim_within_limits_and_order_goes_by_their_indexes(lanes: Store) -> None:
    plan = await explain(lanes, lanes.claim)
    assert "ix_deliveries_leased" in plan
    assert "ix_deliveries_in_order" in plan
    assert not FULL_SCAN.search(plan), plan


async def test_results_in_an_order_go_by_the_index_of_the_order(lanes: Store) -> None:
    failing, over = [each for each in await lanes.claim() if each.endpoint.id == "ep_ordered"]
    results = [
        build_finished(failing, Transition.RESCHEDULE, due_at=NOW + 60 * SECOND),
        build_finished(over, Transition.EXHAUST),
    ]
    plan = await explain(lanes, lambda: lanes.queue.finish(results, NOW))
    assert plan.count("ix_deliveries_in_order") >= 2, plan
    assert not FULL_SCAN.search(plan), plan


async def test_disabling_for_failures_leaves_the_history_unread(lanes: Store) -> None:
    await lanes.publish(*["ep_1"] * 11)
    first, *tried, last = [each for each in await lanes.claim() if each.endpoint.id == "ep_1"]
    day = timedelta(days=1)

    async def fail(*claimed: ClaimedDelivery, at: datetime) -> None:
        await lanes.queue.finish([build_finished(each, Transition.EXHAUST, started_at=at) for each in claimed], at)

    await fail(first, at=NOW)
    await fail(*tried, at=NOW + 5 * day)
    plan = await explain(lanes, lambda: fail(last, at=NOW + 6 * day))
    assert (await lanes.endpoint("ep_1")).status is EndpointStatus.DISABLED
    assert "UPDATE endpoints" in plan
    assert not FULL_SCAN.search(plan), plan


@pytest.mark.parametrize(("endpoint_id", "ordering"), [("ep_1", Ordering.PATIENT), ("ep_ordered", Ordering.NONE)])
async def test_switching_the_order_leaves_the_history_unread(
    lanes: Store, endpoint_id: str, ordering: Ordering
) -> None:
    plan = await explain(lanes, lambda: lanes.change(endpoint_id, ordering=ordering))
    assert not FULL_SCAN.search(plan), plan


async def test_cancelling_in_an_order_goes_by_its_index(lanes: Store) -> None:
    [first, *_] = [each for each in await lanes.claim() if each.endpoint.id == "ep_ordered"]
    plan = await explain_in_transaction(lanes, lambda tx: tx.deliveries.cancel(first.id, NOW))
    assert "ix_deliveries_in_order" in plan
    assert not FULL_SCAN.search(plan), plan


async def test_accepting_in_order_reads_neither_history_nor_backlog(lanes: Store) -> None:
    plan = await explain(lanes, lambda: lanes.accept("ep_ordered", "ep_1", patient="ann"))
    assert not re.search(r"SCAN deliveries|Seq Scan on deliveries|ix_deliveries", plan), plan
