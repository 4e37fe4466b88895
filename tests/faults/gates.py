"""Gates in PostgreSQL: whoever comes to a certain statement stands still before it, so that it can be killed there.

A gate is a trigger of the test's own that waits for an advisory lock. What a process did in the transactions before is
stored then, and what it would do next is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import asyncpg

_KEY: Final = 7715
_PATIENCE: Final = 300.0
"""Seconds after which a wait fails. It is never reached unless something is broken."""


@dataclass(frozen=True)
class Gate:
    """Before which statement, as the end of `CREATE TRIGGER ... BEFORE`."""

    where: str


def _row(when: str, table: str = "deliveries") -> Gate:
    return Gate(f"UPDATE ON {table} FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION stand_still()")


GATES: Final[Mapping[str, Gate]] = {
    "a lease": _row("OLD.lease_until IS NULL AND NEW.lease_until IS NOT NULL"),
    "a result": Gate("INSERT ON attempts FOR EACH STATEMENT EXECUTE FUNCTION stand_still()"),
    "what a result does to a circuit": _row("OLD.failure_streak <> NEW.failure_streak", "lanes"),
    "what a result does to those behind": _row(
        "OLD.lease_until IS NULL AND NEW.lease_until IS NULL AND NEW.order_key IS NOT NULL"
        " AND OLD.state = NEW.state AND NEW.due_at IS DISTINCT FROM OLD.due_at"
    ),
    "holding": _row("OLD.state = 'pending' AND NEW.state = 'held'"),
    "releasing": _row("OLD.state = 'held' AND NEW.state = 'pending'"),
    "cancelling": _row("OLD.state IN ('pending', 'held') AND NEW.state = 'cancelled'"),
}
"""Before what a process can be killed."""


def strike_at(url: str, gate: Gate, strike: Callable[[int], object], *, commits: bool) -> None:
    """Close a gate until somebody stands before it, call `strike` with the port that it is connected from, and open it.

    What was asked of the server is then done though nobody hears of it (`commits`), or the server ends the session.
    """
    asyncio.run(_strike_at(url, gate, strike, commits))


async def _strike_at(url: str, gate: Gate, strike: Callable[[int], object], commits: bool) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            f"""
            CREATE OR REPLACE FUNCTION stand_still() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_advisory_xact_lock_shared({_KEY}); RETURN NEW; END $$;
            SELECT pg_advisory_lock({_KEY});
            """
        )
        await connection.execute(f"CREATE TRIGGER gate BEFORE {gate.where}")
        async with asyncio.timeout(_PATIENCE):
            while not (waiting := await connection.fetch(_WAITING)):  # noqa: ASYNC110 (PostgreSQL tells nobody)
                await asyncio.sleep(0.01)
        strike(waiting[0]["client_port"])
        if not commits:
            await connection.fetch("SELECT pg_terminate_backend($1)", waiting[0]["pid"])
        await connection.execute(f"SELECT pg_advisory_unlock({_KEY})")
        await connection.execute("DROP FUNCTION stand_still CASCADE")
    finally:
        await connection.close()


_WAITING: Final = """
SELECT pid, client_port FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()
ORDER BY query_start
"""
