"""The migrations make the very schema that the tables describe, on each database, however many processes migrate."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy.engine import Connection

from carehook.ledger.connections.database import Database, parse_database_url
from carehook.ledger.records import Lane
from carehook.ledger.sql import schema
from carehook.ledger.sql.schema import HEAD, migrate, read_version
from carehook.ledger.sql.tables import ONLY_ON, deliveries, endpoints, events, metadata, organizations
from carehook.ledger.states import DeliveryState, EndpointStatus, Ordering, Transition
from tests.conformance.store import LEASE, NOW, ORGANIZATION, SECOND, Store, build_finished
from tests.servers.postgres import PostgresServer

SQLITE_DEFINITIONS = "SELECT name, sql FROM sqlite_master WHERE name != 'alembic_version' AND sql IS NOT NULL"
POSTGRESQL_DEFINITIONS = """
    SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename != 'alembic_version'
    UNION ALL
    SELECT conrelid::regclass || '.' || conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text != 'alembic_version'
    UNION ALL
    SELECT table_name || '.' || column_name, concat_ws(' ', data_type, collation_name, is_nullable, column_default)
    FROM information_schema.columns WHERE table_schema = 'public' AND table_name != 'alembic_version'
"""


async def read_definitions(database: Database) -> dict[str, str]:
    """Every table, column, constraint and index as the database itself puts it, by name, without line breaks."""
    query = SQLITE_DEFINITIONS if database.is_sqlite else POSTGRESQL_DEFINITIONS
    async with database.read() as connection:
        return {name: " ".join(text.split()) for name, text in await connection.execute(sa.text(query))}


def normalize(definition: str) -> list[str]:
    """The parts of a definition in any order: a migration may name constraints in another order than a table."""
    return sorted(part.strip(" ()") for part in definition.replace("(", ",").split(","))


@pytest.fixture
def empty_url(database_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """An empty database of the same kind."""
    if database_url.startswith("sqlite"):
        return f"sqlite:///{tmp_path / 'empty.db'}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.url(request.getfixturevalue("postgres_database"))


async def test_the_migrated_schema_is_that_of_the_tables(store: Store, empty_url: str) -> None:
    made = Database(parse_database_url(empty_url))
    async with made.write() as connection:
        await connection.run_sync(metadata.create_all)
    migrated, described = await read_definitions(store.database), await read_definitions(made)
    await made.close()
    assert migrated.keys() == described.keys()
    for name, definition in described.items():
        assert normalize(migrated[name]) == normalize(definition)


async def test_alembic_finds_nothing_to_migrate(store: Store) -> None:
    def compare(connection: Connection) -> Sequence[object]:
        def is_of_this_database(item: sa.schema.SchemaItem, *_: object) -> bool:
            return item.info.get(ONLY_ON) in (None, connection.dialect.name)

        options = {"compare_type": True, "compare_server_default": True, "include_object": is_of_this_database}
        found: Sequence[object] = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
        return found

    async with store.database.read() as connection:
        assert await connection.run_sync(compare) == []


async def test_migrating_again_changes_nothing(store: Store) -> None:
    await store.add_organization()
    await migrate(store.database)
    assert await read_version(store.database) == HEAD
    async with store.ledger.snapshot() as tx:
        assert await tx.organizations.existing(["org_1"]) == {"org_1"}


async def test_several_processes_may_migrate_at_once(empty_url: str) -> None:
    program = f"""if True:
        import asyncio
        from carehook.ledger.connections.database import Database, parse_database_url
        from carehook.ledger.sql.schema import migrate

        async def main():
            database = Database(parse_database_url({empty_url!r}))
            print("ready", flush=True)
            input()
            await migrate(database)
            await database.close()

        asyncio.run(main())
    """
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-c", program)
    processes = [await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        await process.stdout.readline()
    results = await asyncio.gather(*(process.communicate(b"\n") for process in processes))
    assert [stderr.decode() for _, stderr in results] == [""] * 3
    assert [process.returncode for process in processes] == [0] * 3
    database = Database(parse_database_url(empty_url))
    assert await read_version(database) == HEAD
    await database.close()


def upgrade_to(connection: Connection, version: str) -> None:
    """Bring a store to a version that was current once."""
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, version)


@dataclass(frozen=True)
class OldDelivery:
    """A delivery as schema 0001 has it."""

    id: str
    state: DeliveryState
    due_at: datetime | None
    is_leased: bool = False
    failure_count: int = 0


OLD_DELIVERIES = (
    OldDelivery("dlv_pending", DeliveryState.PENDING, NOW),
    OldDelivery("dlv_retrying", DeliveryState.PENDING, NOW + SECOND, failure_count=1),
    OldDelivery("dlv_leased", DeliveryState.PENDING, NOW, is_leased=True),
    OldDelivery("dlv_held", DeliveryState.HELD, NOW),
    OldDelivery("dlv_succeeded", DeliveryState.SUCCEEDED, None),
    OldDelivery("dlv_exhausted", DeliveryState.EXHAUSTED, None, failure_count=9),
    OldDelivery("dlv_cancelled", DeliveryState.CANCELLED, None),
)


def insert(connection: Connection, table: sa.Table, **values: Any) -> None:
    connection.execute(sa.insert(table).values(values))


def insert_endpoint(connection: Connection, endpoint_id: str, **fields: Any) -> None:
    """An endpoint as version 0001 wrote it, with what else is given."""
    insert(
        connection,
        endpoints,
        id=endpoint_id,
        organization_id=ORGANIZATION,
        url="https://insurer.example/hook",
        description="",
        event_types=["patient_report_sent"],
        sealed_secrets=b"\x00sealed",
        created_at=NOW,
        updated_at=NOW,
        **fields,
    )


def insert_delivery(connection: Connection, old: OldDelivery, **fields: Any) -> None:
    """A delivery of an event of its own as version 0001 wrote them, with what else is given."""
    event_id = old.id.replace("dlv", "evt")
    insert(
        connection,
        events,
        id=event_id,
        organization_id=ORGANIZATION,
        type="patient_report_sent",
        occurred_on=1.5,
        body=b"{}",
        is_test=False,
        created_at=NOW,
    )
    insert(
        connection,
        deliveries,
        id=old.id,
        event_id=event_id,
        organization_id=ORGANIZATION,
        event_type="patient_report_sent",
        state=old.state,
        due_at=old.due_at,
        leased_at=NOW if old.is_leased else None,
        lease_until=NOW + LEASE if old.is_leased else None,
        lease_token=int(old.is_leased),
        failure_count=old.failure_count,
        created_at=NOW,
        **fields,
    )


def fill_old(connection: Connection) -> None:
    """Rows as version 0001 wrote them, with none of the columns that came later."""
    insert(connection, organizations, id=ORGANIZATION, name="Insurer", created_at=NOW)
    for endpoint_id, status in (("ep_1", "active"), ("ep_2", "paused"), ("ep_3", "deleted")):
        insert_endpoint(connection, endpoint_id, status=status)
    for old in OLD_DELIVERIES:
        insert_delivery(connection, old, endpoint_id="ep_2" if old.state is DeliveryState.HELD else "ep_1")


async def make_old(url: str, version: str, fill: Callable[[Connection], None]) -> None:
    """A store that was at an old version, with something in it, and was brought up to date."""
    old = Database(parse_database_url(url))
    async with old.write() as connection:
        await connection.run_sync(upgrade_to, version)
        await connection.run_sync(fill)
    assert await read_version(old) == version
    await migrate(old)
    await old.close()


@pytest.fixture
async def upgraded(empty_url: str) -> AsyncIterator[Store]:
    """A store that was at schema 0001, with something of everything in it, and was brought up to date."""
    await make_old(empty_url, "0001", fill_old)
    async with contextlib.AsyncExitStack() as opened:
        yield await Store.open(empty_url, opened)


async def test_an_upgrade_keeps_every_delivery_as_it_is(upgraded: Store) -> None:
    await upgraded.ledger.check()
    for old in OLD_DELIVERIES:
        found = await upgraded.delivery(old.id)
        assert (found.state, found.due_at, found.failure_count) == (old.state, old.due_at, old.failure_count)
        assert found.lease_until == (NOW + LEASE if old.is_leased else None)
    async with upgraded.ledger.snapshot() as tx:
        event = await tx.events.get("evt_pending")
    assert event is not None
    assert (event.body, event.patient_key) == (b"{}", None)


async def test_an_upgrade_gives_each_endpoint_a_clean_lane_and_no_limits(upgraded: Store) -> None:
    endpoint = await upgraded.endpoint("ep_1")
    assert (endpoint.max_in_flight, endpoint.rate_limit, endpoint.ordering, endpoint.revision) == (
        None,
        None,
        Ordering.NONE,
        0,
    )
    async with upgraded.ledger.snapshot() as tx:
        assert await tx.endpoints.lanes(["ep_1", "ep_2", "ep_3"]) == dict.fromkeys(["ep_1", "ep_2", "ep_3"], Lane())


async def test_after_an_upgrade_what_was_there_is_delivered(upgraded: Store) -> None:
    assert [each.id for each in await upgraded.claim()] == ["dlv_pending"]
    assert [each.id for each in await upgraded.claim(now=NOW + SECOND)] == ["dlv_retrying"]
    # The lease of the old version's worker runs out as any other.
    end = NOW + SECOND + LEASE
    assert await upgraded.queue.recover_lost(end) == 3
    claimed = {each.id: each for each in await upgraded.claim(now=end)}
    assert claimed.keys() == {"dlv_pending", "dlv_retrying", "dlv_leased"}
    assert claimed["dlv_leased"].lease_token == 2
    results = [build_finished(each, Transition.EXHAUST) for each in claimed.values()]
    assert await upgraded.queue.finish(results, end) == [True] * 3
    assert (await upgraded.lane("ep_1")).failure_streak == 3
    await upgraded.set_status("ep_2", EndpointStatus.ACTIVE)
    assert [each.id for each in await upgraded.claim()] == ["dlv_held"]


async def test_after_an_upgrade_limits_and_order_can_be_asked_for(upgraded: Store) -> None:
    await upgraded.change("ep_1", ordering=Ordering.PATIENT, max_in_flight=2)
    first, second = await upgraded.accept("ep_1", "ep_1", patient="ann")
    claimed = await upgraded.claim()
    # What is of no known patient is in no order; with the lease from before there is room for one.
    assert [each.id for each in claimed] == ["dlv_pending"]
    await upgraded.queue.finish([build_finished(each) for each in claimed], NOW)
    [claimed_first] = await upgraded.claim()
    assert claimed_first.id == first
    await upgraded.queue.recover_lost(NOW + LEASE)
    assert second not in {each.id for each in await upgraded.claim(now=NOW + LEASE)}


def fill_ordered(connection: Connection) -> None:
    """Rows as version 0003 wrote them: what waited for a failed one was put off with it."""
    insert(connection, organizations, id=ORGANIZATION, name="Insurer", created_at=NOW)
    for endpoint_id, ordering in (("ep_1", Ordering.PATIENT), ("ep_2", Ordering.NONE)):
        insert_endpoint(connection, endpoint_id, status="active", ordering=ordering)
        connection.execute(sa.text("INSERT INTO lanes (endpoint_id) VALUES (:id)").bindparams(id=endpoint_id))
    for number, old in enumerate(OLD_ORDERED, 1):
        endpoint_id = "ep_2" if old.id == "dlv_resent" else "ep_1"
        insert_delivery(connection, old, endpoint_id=endpoint_id, order_key="ann", position=number)


LATER = NOW + 60 * SECOND
OLD_ORDERED = (
    OldDelivery("dlv_failed", DeliveryState.PENDING, LATER, failure_count=1),
    OldDelivery("dlv_behind", DeliveryState.PENDING, LATER),
    OldDelivery("dlv_resent", DeliveryState.PENDING, NOW),
)


async def test_after_an_upgrade_what_was_put_off_follows_what_it_waits_for(empty_url: str) -> None:
    await make_old(empty_url, "0003", fill_ordered)
    async with contextlib.AsyncExitStack() as opened:
        store = await Store.open(empty_url, opened)
        # At an endpoint that asks for order no more, nothing is in one.
        assert [each.id for each in await store.claim()] == ["dlv_resent"]
        async with store.ledger.transaction() as tx:
            assert await tx.deliveries.retry("dlv_failed", NOW)
        assert await store.finish(await store.claim_one())
        assert (await store.claim_one()).id == "dlv_behind"
