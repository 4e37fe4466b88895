"""What the queue on PostgreSQL does beyond the port: it tells other processes, and outlives its connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any, cast
from unittest.mock import patch

import pytest
import sqlalchemy as sa

from carehook.ledger.connections.postgresql import Connections
from carehook.ledger.port import LedgerUnavailable
from carehook.ledger.postgresql.notifications import build_payloads
from carehook.ledger.sql import queue
from carehook.ledger.sql.queue import QueueSql
from carehook.ledger.sql.schema import migrate
from carehook.ledger.sql.tables import deliveries
from carehook.ledger.states import DeliveryState, EndpointStatus
from tests.conformance.store import NOW, SECOND, Store, build_finished
from tests.servers.postgres import PostgresServer

LISTENERS = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
NEVER = timedelta(hours=1)


@pytest.fixture(autouse=True)
def rare_surveys(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found here was told."""
    monkeypatch.setattr(queue, "SURVEY_EVERY", 1e9)


async def find_listeners(store: Store) -> set[int]:
    async with store.database.read() as connection:
        return set((await connection.execute(sa.text(LISTENERS))).scalars())


async def until_listening(store: Store, *before: int) -> set[int]:
    """The connections that listen, once there is one that was not there before."""
    async with asyncio.timeout(30):
        while True:
            if found := await find_listeners(store) - set(before):
                return found


@pytest.fixture
async def worker(postgresql_store: Store) -> Store:
    """Another process, which has claimed and found nothing, and hears what it is told."""
    await postgresql_store.add_endpoints("ep_1", "ep_2")
    worker = await postgresql_store.second()
    assert await worker.claim_known() == []
    await until_listening(postgresql_store)
    return worker


async def test_another_process_hears_of_what_is_accepted(postgresql_store: Store, worker: Store) -> None:
    waiting = asyncio.create_task(worker.queue.wait(at_most=NEVER))
    made = await postgresql_store.accept("ep_2")
    await waiting
    assert [each.id for each in await worker.claim_known()] == made


async def test_another_process_hears_of_what_an_intervention_makes_due(postgresql_store: Store, worker: Store) -> None:
    await postgresql_store.set_status("ep_1", EndpointStatus.PAUSED)
    [delivery_id] = await postgresql_store.publish("ep_1", state=DeliveryState.HELD)
    # That there is something new is told as well.
    await worker.queue.wait(at_most=NEVER)
    assert await worker.claim_known() == []
    await postgresql_store.set_status("ep_1", EndpointStatus.ACTIVE)
    await worker.queue.wait(at_most=NEVER)
    assert [each.id for each in await worker.claim_known()] == [delivery_id]


async def test_a_process_that_has_not_claimed_does_not_listen(postgresql_store: Store) -> None:
    await postgresql_store.add_endpoints("ep_1")
    await postgresql_store.accept("ep_1")
    assert await find_listeners(postgresql_store) == set()


async def test_who_lost_the_connection_to_hear_by_makes_another(postgresql_store: Store, worker: Store) -> None:
    before = await find_listeners(postgresql_store)
    async with postgresql_store.database.write() as connection:
        for process in before:
            await connection.execute(sa.text("SELECT pg_terminate_backend(:process)").bindparams(process=process))
    await until_listening(postgresql_store, *before)
    made = await postgresql_store.accept("ep_1")
    await worker.queue.wait(at_most=NEVER)
    assert [each.id for each in await worker.claim_known()] == made


async def test_a_process_does_not_hear_itself(postgresql_store: Store, worker: Store) -> None:
    heard: list[str] = []
    with patch.object(cast(QueueSql, worker.queue)._agenda, "add", heard.extend):
        await worker.accept("ep_1")
        # It knew at once. Notifications come in the order of their commits, so its own has come before the other's.
        await asyncio.sleep(0.05)
        await postgresql_store.accept("ep_2")
        async with asyncio.timeout(30):
            while "ep_2" not in heard:
                await worker.queue.wait(at_most=NEVER)
    assert heard == ["ep_1", "ep_2"]


@pytest.mark.parametrize("count", [1, 2, 500, 1000])
def test_every_endpoint_is_named_in_notifications_that_postgresql_takes(count: int) -> None:
    ids = {f"ep_{number:032x}" for number in range(count)}
    payloads = build_payloads("sender", ids)
    assert all(len(payload) < 8000 for payload in payloads)
    told = [payload.partition(" ") for payload in payloads]
    assert {sender for sender, _, _ in told} == {"sender"}
    assert sorted(name for _, _, names in told for name in names.split(",")) == sorted(ids)


def test_very_many_endpoints_are_told_of_as_any() -> None:
    assert build_payloads("sender", {f"ep_{number}" for number in range(1001)}) == ["sender "]


@contextlib.asynccontextmanager
async def open_own_server() -> AsyncIterator[tuple[PostgresServer, Store]]:
    """A server that a test may stop, with a store that has something to do."""
    with PostgresServer() as server:
        async with contextlib.AsyncExitStack() as opened:
            store = await Store.open(server.url(), opened)
            await migrate(store.database)
            await store.add_endpoints("ep_1")
            await store.accept(*["ep_1"] * 3)
            yield server, store


async def test_while_the_server_is_away_all_say_so_and_go_on_when_it_is_back() -> None:
    async with open_own_server() as (server, store):
        done, given_back = await store.claim(2)
        finished = [build_finished(done)]
        server.stop()
        actions: list[Callable[[], Awaitable[object]]] = [
            lambda: store.accept("ep_1"),
            store.claim,
            lambda: store.queue.finish(finished, NOW + SECOND),
            lambda: store.queue.give_back([given_back]),
        ]
        for action in actions:
            with pytest.raises(LedgerUnavailable, match="does not answer"):
                await action()
        server.start()
        assert await store.queue.finish(finished, NOW + SECOND) == [True]
        await store.queue.give_back([given_back])
        await store.accept("ep_1")
        assert len(await store.claim()) == 3


async def test_a_statement_that_the_server_ends_is_a_store_that_does_not_answer(postgresql_store: Store) -> None:
    connections: Connections = postgresql_store.database.connections
    with pytest.raises(LedgerUnavailable, match="terminating connection"):
        await connections.fetch("SELECT pg_terminate_backend(pg_backend_pid())")
    [row] = await connections.fetch("SELECT 1")
    assert row[0] == 1


@pytest.mark.parametrize("state", ["53100", "57014", "58030"])
async def test_a_server_without_room_or_in_trouble_is_unavailable(postgresql_store: Store, state: str) -> None:
    with pytest.raises(LedgerUnavailable, match="no room"):
        await postgresql_store.database.connections.fetch(
            f"DO $$ BEGIN RAISE 'no room' USING ERRCODE = '{state}'; END $$"
        )


async def test_what_need_not_be_durable_does_not_wait_for_the_disk(postgresql_store: Store) -> None:
    connections = postgresql_store.database.connections
    show = "SELECT current_setting('synchronous_commit')"
    assert [(await connections.fetch(show, durable=durable))[0][0] for durable in (True, False)] == ["on", "off"]


async def test_what_is_read_under_a_lock_is_new_whatever_the_servers_default_is(postgresql_store: Store) -> None:
    url = postgresql_store.database.url
    change = f"ALTER DATABASE \"{url.database}\" SET default_transaction_isolation = 'repeatable read'"
    await postgresql_store.database.connections.fetch(change)
    show = "SHOW transaction_isolation"
    database = (await postgresql_store.second()).database
    assert await database.run(lambda session: session.fetch(show, ())) == [("read committed",)]
    assert [tuple(row) for row in await database.connections.fetch(show)] == [("read committed",)]
    async with database.read() as connection:
        assert (await connection.execute(sa.text(show))).scalar_one() == "repeatable read"


async def test_a_connection_whose_server_falls_silent_is_ended_by_the_kernel(postgresql_store: Store) -> None:
    await postgresql_store.claim()
    connection: Any = await postgresql_store.database.connections.open()
    own = connection._transport.get_extra_info("socket")
    async with postgresql_store.database.write() as other:
        driver: Any = (await other.get_raw_connection()).driver_connection
        pooled = driver._transport.get_extra_info("socket")
    for each in (own, pooled):
        assert each.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert each.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
    await connection.close()


# ------------------------------------------------------------------------------------ half a claim


def be_away(store: Store) -> Any:
    """SQLAlchemy's connections fail meanwhile, and the driver's own do not."""
    return patch.object(store.database, "run", side_effect=LedgerUnavailable("the database has no more connections"))


async def leased(store: Store) -> set[str]:
    async with store.database.read() as connection:
        query = sa.select(deliveries.c.id).where(deliveries.c.lease_until.is_not(None))
        return set((await connection.execute(query)).scalars())


async def test_where_limited_endpoints_cannot_be_claimed_from_the_others_are_delivered(postgresql_store: Store) -> None:
    store = postgresql_store
    await store.add_endpoints("ep_1")
    await store.add_endpoints("ep_2", max_in_flight=1)
    await store.publish("ep_1")
    assert await store.finish(await store.claim_one())
    plain, limited = await store.publish("ep_1", "ep_2")
    store.queue.wake(["ep_1", "ep_2"])
    with be_away(store):
        assert [each.id for each in await store.claim_known()] == [plain]
    assert await leased(store) == {plain}
    # The other is come back to by itself.
    assert [each.id for each in await store.claim_known(now=NOW + SECOND)] == [limited]


async def test_where_only_limited_endpoints_are_due_it_is_told_that_the_store_is_away(postgresql_store: Store) -> None:
    store = postgresql_store
    await store.add_endpoints("ep_1", max_in_flight=1)
    assert await store.claim() == []
    await store.publish("ep_1")
    store.queue.wake(["ep_1"])
    with be_away(store), pytest.raises(LedgerUnavailable):
        await store.claim_known()
    assert len(await store.claim_known()) == 1


async def test_what_is_leased_of_an_endpoint_that_cannot_be_read_is_given_back(postgresql_store: Store) -> None:
    store = postgresql_store
    await store.add_endpoints("ep_1")
    assert await store.claim() == []
    ids = await store.publish("ep_1", "ep_1")
    store.queue.wake(["ep_1"])
    with be_away(store), pytest.raises(LedgerUnavailable):
        await store.claim_known()
    assert await leased(store) == set()
    assert [each.id for each in await store.claim_known()] == ids
