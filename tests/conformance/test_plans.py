"""However long the history is, what happens often looks only at the rows it is about."""

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from carehook.ledger import sessions
from carehook.ledger.port import Transaction
from carehook.ledger.records import DeliveryFilter, PageRequest
from carehook.ledger.sessions import Row, SessionSqlite
from carehook.ledger.states import DeliveryState, EndpointStatus, Transition
from tests.conformance.store import LEASE, NOW, ORGANIZATION, SECOND, Store, build_delivery, build_event, build_finished

HISTORY = 4000

# Reads every row of a table that grows with every event, or every entry of an index of all its rows.
FULL_SCAN = re.compile(
    r"SCAN (?:deliveries|events|attempts)(?! USING (?:COVERING )?INDEX ix_deliveries_(?:due|leased|set_aside))"
    r"|Seq Scan on (?:deliveries|events|attempts)"
)


@contextmanager
def record_statements() -> Iterator[list[tuple[str, Any]]]:
    """The statements that are executed meanwhile, with their parameters."""
    recorded: list[tuple[str, Any]] = []

    def record(_: Any, __: Any, statement: str, parameters: Any, ___: Any, many: bool) -> None:
        if statement.lstrip().startswith(("SELECT", "UPDATE", "WITH", "DELETE")):
            recorded.append((statement, parameters[0] if many else parameters))

    class RecordingSession(SessionSqlite):
        """A session beside SQLAlchemy, which tells of its statements as SQLAlchemy does."""

        def fetch(self, text: str, parameters: Sequence[Any]) -> Sequence[Row]:
            record(None, None, text, parameters, None, False)
            return super().fetch(text, parameters)

        def execute_many(self, text: str, rows: Sequence[Sequence[Any]]) -> None:
            record(None, None, text, rows, None, True)
            super().execute_many(text, rows)

    event.listen(sa.Engine, "before_cursor_execute", record)
    try:
        with patch.object(sessions, "SessionSqlite", RecordingSession):
            yield recorded
    finally:
        event.remove(sa.Engine, "before_cursor_execute", record)


async def explain(store: Store, action: Callable[[], Awaitable[Any]]) -> str:
    """How the database goes about each statement of `action`."""
    with record_statements() as recorded:
        await action()
    assert recorded
    plans: list[str] = []
    keyword = "EXPLAIN QUERY PLAN" if store.database.is_sqlite else "EXPLAIN"
    async with store.database.write() as connection:
        for statement, parameters in recorded:
            rows = (await connection.exec_driver_sql(f"{keyword} {statement}", tuple(parameters))).all()
            plans += [statement, *(str(row[-1]) for row in rows)]
    return "\n".join(plans)


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
    "hold": lambda tx: tx.deliveries.hold("ep_1"),
    "release": lambda tx: tx.deliveries.release("ep_3"),
    "cancel": lambda tx: tx.deliveries.cancel("dlv_1", NOW),
    "cancel_all": lambda tx: tx.deliveries.cancel_all("ep_1", NOW),
    "retry": lambda tx: tx.deliveries.retry("dlv_1", NOW),
    "recover": lambda tx: tx.deliveries.recover("ep_1", NOW, NOW),
}


@pytest.mark.parametrize("name", MOVES)
async def test_an_intervention_leaves_the_history_unread(long_history: Store, name: str) -> None:
    plan = await explain_in_transaction(long_history, MOVES[name])
    assert not FULL_SCAN.search(plan), plan


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
