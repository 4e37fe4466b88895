"""PostgreSQL is killed and restarted under load: callers are told to repeat, and nothing that was accepted is lost."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sa

from carehook.ledger.connections.database import Database, parse_database_url
from tests.faults.faults import (
    kill_a_process_of_the_database,
    kill_the_database,
    restart_the_database,
    restart_the_database_at_once,
)
from tests.faults.site import Site, Size
from tests.servers.postgres import PostgresServer


async def test_a_process_that_stands_still_in_a_transaction_does_not_hold_its_locks_for_ever(
    postgres_server: PostgresServer, postgres_database: str
) -> None:
    """PostgreSQL ends such a transaction, and notices that a host is gone within a minute rather than hours."""
    database = Database(parse_database_url(postgres_server.plain_url(postgres_database)))
    names = ["idle_in_transaction_session_timeout", "tcp_keepalives_idle", "tcp_user_timeout"]
    async with database.write() as connection:
        found = [(await connection.execute(sa.text(f"SHOW {name}"))).scalar_one() for name in names]
    await database.close()
    assert found == ["10s", "30", "60000"]


@pytest.mark.timeout(300)
def test_a_database_that_goes_and_comes_back_costs_time_alone(tmp_path: Path, chance: Random) -> None:
    """No process of Carehook is told or restarted: each finds its way back."""
    with Site(tmp_path, Size.POSTGRESQL, chance) as site:
        with site.build_load() as callers:
            site.suffer(
                restart_the_database, kill_the_database, restart_the_database_at_once, kill_a_process_of_the_database
            )
            assert all(process.is_running() for process in site.processes)
        account = site.settle(callers)
    assert account.holds(), account
    assert callers.repeated == 0
    assert callers.unavailable > 0
    assert account.accepted > 50
