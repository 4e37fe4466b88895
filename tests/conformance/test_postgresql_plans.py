"""The hot statements on PostgreSQL go by index from what they are given, whatever PostgreSQL believes of the tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from carehook.ledger.postgresql.accept import ACCEPT
from carehook.ledger.postgresql.queue_texts import CLAIM, CURRENT, FINISH, GIVE_BACK
from carehook.ledger.states import DeliveryState
from tests.conformance.store import Store, build_delivery, build_event

STATEMENTS = {"accept": ACCEPT, "claim": CLAIM, "finish": FINISH, "give back": GIVE_BACK, "find changed": CURRENT}


async def explain(store: Store, statement: str) -> list[dict[str, Any]]:
    """The nodes of the plan that such a connection keeps for a statement."""
    count = max(int(number) for number in re.findall(r"\$(\d+)", statement))
    connection = await store.database.connections.open()
    try:
        await connection.execute(f"PREPARE hot AS {statement}")
        plan = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE hot({', '.join(['NULL'] * count)})")
    finally:
        await connection.close()
    return list(walk(json.loads(plan)[0]["Plan"]))


def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for below in node.get("Plans", ()):
        yield from walk(below)


ROWS = {"not yet known": 0, "few": 60, "a history and few leases": 2000}


@pytest.fixture(params=ROWS)
async def believed(request: pytest.FixtureRequest, postgresql_store: Store) -> Store:
    """A store of whose tables PostgreSQL believes different things."""
    if count := ROWS[request.param]:
        await postgresql_store.add_endpoints("ep_1")
        new = [build_event() for _ in range(count)]
        async with postgresql_store.ledger.transaction() as tx:
            await tx.events.add(new)
            await tx.deliveries.add([build_delivery(each, "ep_1", DeliveryState.SUCCEEDED) for each in new])
        await postgresql_store.publish("ep_1")
        async with postgresql_store.database.write() as connection:
            await connection.execute(sa.text("ANALYZE"))
    return postgresql_store


@pytest.mark.parametrize("name", STATEMENTS)
async def test_a_hot_statement_goes_by_index_from_what_it_is_given(believed: Store, name: str) -> None:
    read = [node for node in await explain(believed, STATEMENTS[name]) if "Relation Name" in node]
    assert read
    for node in read:
        if node["Node Type"] in ("ModifyTable", "LockRows"):
            continue
        assert node["Node Type"] in ("Index Scan", "Index Only Scan"), node
        assert "Index Cond" in node, node


@pytest.mark.parametrize("name", ["finish", "find changed"])
async def test_what_is_leased_is_not_looked_for_among_all_leases(believed: Store, name: str) -> None:
    used = {node.get("Index Name") for node in await explain(believed, STATEMENTS[name])}
    assert used
    assert "ix_deliveries_leased" not in used


async def test_a_claim_reads_what_is_due_in_its_order(believed: Store) -> None:
    plan = await explain(believed, CLAIM)
    [due] = [node for node in plan if node.get("Index Name") == "ix_deliveries_due"]
    assert "due_at" in due["Index Cond"]
    assert "endpoint_id" in due["Index Cond"]


async def test_what_claims_leave_behind_is_tidied_up_by_its_number(postgresql_store: Store) -> None:
    query = sa.text("SELECT unnest(reloptions) FROM pg_class WHERE relname = 'deliveries'")
    async with postgresql_store.database.read() as connection:
        settings = set((await connection.execute(query)).scalars())
    # Otherwise a fifth of the history is, and a claim looks through all of it (measured: 20 ns an entry).
    assert {"autovacuum_vacuum_threshold=50000", "vacuum_index_cleanup=on"} <= settings
