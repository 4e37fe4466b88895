"""An endpoint is paused, resumed and deleted at once; its deliveries, however many, follow, whoever dies in between."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from carehook.bootstrap import open_database
from carehook.clock import utc_now
from carehook.config import Settings
from carehook.directory import endpoints
from carehook.directory.endpoints import EndpointChanges, Endpoints
from carehook.dispatch.addresses import AddressRules
from carehook.dispatch.settling import settle_all
from carehook.insights import WaitKind
from carehook.keyring import load_keyring
from carehook.ledger.port import Ledger, LedgerUnavailable
from carehook.ledger.records import Settled
from carehook.ledger.sql import settling
from carehook.ledger.states import DeliveryState, EndpointStatus, Ordering
from carehook.refusals import Conflict
from tests.e2e.dispatching import Platform, eventually, make_settings, open_platform, open_worker, running
from tests.receivers import RecordingReceiver
from tests.servers.installation import Installation
from tests.servers.interrupted_status import PART
from tests.servers.postgres import PostgresServer

REPOSITORY = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9/hook"
ADD_EVENTS = """
    WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
    INSERT INTO events (id, organization_id, type, occurred_on, body, is_test, created_at)
    SELECT 'evt_' || n, ?, 'patient_report_sent', 0, '', false, 0 FROM numbers
"""
ADD_DELIVERIES = """
    INSERT INTO deliveries (id, event_id, endpoint_id, organization_id, event_type, state, created_at, due_at)
    SELECT 'dlv_' || id, id, ?, organization_id, type, 'pending', 0, 0 FROM events
"""
PENDING, HELD, CANCELLED = DeliveryState.PENDING, DeliveryState.HELD, DeliveryState.CANCELLED


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of an empty store, on each kind of database."""
    if request.param == "sqlite":
        return make_settings(tmp_path)
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name: str = request.getfixturevalue("postgres_database")
    return make_settings(tmp_path, database_url=SecretStr(server.url(name)))


@pytest.fixture
async def platform(settings: Settings) -> AsyncIterator[Platform]:
    """Carehook on that store; nothing works yet."""
    async with open_platform(settings) as platform:
        yield platform


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of two deliveries, two of which follow before whoever asked is answered."""
    monkeypatch.setattr(settling, "PART", PART)
    monkeypatch.setattr(endpoints, "PARTS_AT_ONCE", 2)


async def register(platform: Platform, count: int, url: str = NOWHERE) -> str:
    """A new endpoint for which so many deliveries wait; its id."""
    endpoint_id = (await platform.register(url)).endpoint.id
    await platform.publish(count)
    return endpoint_id


async def wait_until_settled(platform: Platform) -> None:
    async def reached() -> bool:
        return not await platform.application.ledger.unsettled()

    await eventually(reached, "deliveries in their places")


class WatchedLedger:
    """A real ledger that counts the parts, and fails or tells of them where it is told to."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.parts: list[str] = []
        self.broken: dict[str, Exception] = {}
        self.stopping = asyncio.Event()
        self.stop_after = 1_000_000

    async def settle(self, endpoint_id: str, now: datetime, *, waits: bool) -> Settled:
        self.parts.append(endpoint_id)
        if len(self.parts) >= self.stop_after:
            self.stopping.set()
        if endpoint_id in self.broken:
            raise self.broken[endpoint_id]
        return await self._ledger.settle(endpoint_id, now, waits=waits)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    @property
    def port(self) -> Ledger:
        """This ledger, as use cases take it."""
        return cast(Ledger, self)


# ------------------------------------------------------------------------------------ asked for by a person


async def test_a_pause_is_answered_after_some_parts_and_a_worker_elsewhere_does_the_rest(
    platform: Platform, settings: Settings
) -> None:
    with RecordingReceiver() as receiver:
        endpoint_id = await register(platform, 7, receiver.url)
        paused = await platform.application.endpoints.pause(endpoint_id)
        assert paused.status is EndpointStatus.PAUSED
        assert await platform.count_states() == {HELD: 4, PENDING: 3}
        for delivery in await platform.list_deliveries():
            assert delivery.waits_for is not None
            assert delivery.waits_for.kind is WaitKind.ENDPOINT
            assert delivery.waits_for.detail == "The endpoint is paused. Resume it to go on."
        async with open_worker(settings) as worker, running(worker):
            await wait_until_settled(platform)
        assert await platform.count_states() == {HELD: 7}
    assert receiver.requests == []


async def test_a_resume_lets_the_first_go_at_once_and_all_of_them_in_the_end(
    platform: Platform, settings: Settings
) -> None:
    with RecordingReceiver() as receiver:
        endpoint_id = (await platform.register(receiver)).endpoint.id
        await platform.application.endpoints.pause(endpoint_id)
        await platform.publish(7)
        await platform.application.endpoints.resume(endpoint_id)
        assert await platform.count_states() == {PENDING: 4, HELD: 3}
        *_, newest = await platform.list_deliveries()
        assert newest.waits_for is not None
        assert newest.waits_for.detail == "The endpoint was resumed, and what was held for it is being released."
        with pytest.raises(Conflict, match="is being released"):
            await platform.application.interventions.retry(newest.id)
        async with open_worker(settings) as worker, running(worker):
            await platform.wait_for(DeliveryState.SUCCEEDED, 7)
    assert len(receiver.requests) == 7


async def test_a_deletion_tells_what_it_cancelled_and_that_there_is_more(
    platform: Platform, settings: Settings
) -> None:
    endpoint_id = await register(platform, 7)
    assert await platform.application.endpoints.delete(endpoint_id) == Settled(4, is_complete=False)
    *_, newest = await platform.list_deliveries()
    assert newest.waits_for is not None
    assert newest.waits_for.detail == "The endpoint was deleted, and what waited for it is being cancelled."
    async with open_worker(settings) as worker, running(worker):
        await wait_until_settled(platform)
    assert await platform.count_states() == {CANCELLED: 7}


async def test_a_status_that_is_stored_is_told_though_the_store_went_away_right_after(
    platform: Platform, settings: Settings
) -> None:
    endpoint_id = await register(platform, 3)
    ledger = WatchedLedger(platform.application.ledger)
    ledger.broken[endpoint_id] = LedgerUnavailable("the database does not answer")
    keyring = load_keyring(settings.home, settings.encryption_key)
    changing = Endpoints(ledger.port, keyring, AddressRules(), utc_now)
    assert await changing.delete(endpoint_id) == Settled(0, is_complete=False)
    assert await platform.count_states() == {PENDING: 3}
    await settle_all(platform.application.ledger, utc_now, asyncio.Event())
    assert await platform.count_states() == {CANCELLED: 3}


async def test_the_order_of_a_backlog_that_is_too_long_is_not_changed(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "MOST_REORDERED", 2)
    endpoint_id = await register(platform, 2)
    change = platform.application.endpoints.change
    assert (await change(endpoint_id, EndpointChanges(ordering=Ordering.PATIENT))).ordering is Ordering.PATIENT
    await platform.publish()
    with pytest.raises(Conflict, match="More than 2 of the endpoint's deliveries are not finished"):
        await change(endpoint_id, EndpointChanges(ordering=Ordering.NONE))
    # What leaves the order as it is is changed all the same.
    same = EndpointChanges(ordering=Ordering.PATIENT, description="the new portal")
    assert (await change(endpoint_id, same)).description == "the new portal"


@pytest.mark.parametrize(("waiting", "told"), [(25_001, "25000, and workers cancel the rest"), (3, "3")])
def test_a_deletion_on_the_command_line_tells_what_is_left_to_the_workers(
    tmp_path: Path, waiting: int, told: str
) -> None:
    carehook = Installation(tmp_path)
    organization_id = carehook.read("org", "create", "Example Hospital")["id"]
    endpoint_id = carehook.read("endpoint", "create", organization_id, NOWHERE)["id"]
    with closing(sqlite3.connect(carehook.home / "carehook.db")) as connection, connection:
        connection.execute(ADD_EVENTS, (waiting, organization_id))
        connection.execute(ADD_DELIVERIES, (endpoint_id,))
    done = carehook.run("endpoint", "delete", endpoint_id, "--yes")
    assert done.stderr == f"{endpoint_id} is deleted; deliveries cancelled: {told}.\n"


# ------------------------------------------------------------------------------------ by the workers


async def test_several_workers_settle_several_endpoints(platform: Platform, settings: Settings) -> None:
    ids = [(await platform.register(NOWHERE)).endpoint.id for _ in range(3)]
    await platform.publish(20)
    for endpoint_id in ids:
        await platform.application.endpoints.pause(endpoint_id)
    async with (
        open_worker(settings) as first,
        open_worker(settings) as second,
        running(first),
        running(second),
    ):
        await wait_until_settled(platform)
    assert await platform.count_states() == {HELD: 60}


async def test_each_endpoint_has_its_turn_and_one_that_cannot_be_settled_keeps_none_from_it(
    platform: Platform,
) -> None:
    poisoned, sound = [(await platform.register(NOWHERE)).endpoint.id for _ in range(2)]
    await platform.publish(9)
    for endpoint_id in (poisoned, sound):
        await platform.application.endpoints.pause(endpoint_id)
    ledger = WatchedLedger(platform.application.ledger)
    ledger.broken[poisoned] = ValueError("a row that nobody expected")
    await settle_all(ledger.port, utc_now, asyncio.Event())
    assert await platform.application.ledger.unsettled() == [poisoned]
    assert await platform.count_states(sound) == {HELD: 9}
    del ledger.broken[poisoned]
    await settle_all(ledger.port, utc_now, asyncio.Event())
    assert await platform.application.ledger.unsettled() == []


async def test_a_worker_that_is_stopped_begins_no_other_part(platform: Platform) -> None:
    endpoint_id = await register(platform, 11)
    await platform.application.endpoints.pause(endpoint_id)
    ledger = WatchedLedger(platform.application.ledger)
    ledger.stop_after = 2
    await settle_all(ledger.port, utc_now, ledger.stopping)
    assert ledger.parts == [endpoint_id] * 2
    assert await platform.application.ledger.unsettled() == [endpoint_id]


async def test_what_others_have_locked_is_left_for_later(
    postgres_server: PostgresServer, postgres_database: str, tmp_path: Path
) -> None:
    settings = make_settings(tmp_path, database_url=SecretStr(postgres_server.url(postgres_database)))
    database = open_database(settings)
    async with open_platform(settings) as platform:
        endpoint_id = await register(platform, 6)
        await platform.application.endpoints.pause(endpoint_id)
        ledger = WatchedLedger(platform.application.ledger)
        async with database.write() as connection:
            await connection.execute(sa.text("SELECT id FROM deliveries WHERE state = 'pending' FOR UPDATE"))
            await settle_all(ledger.port, utc_now, asyncio.Event())
        assert ledger.parts == [endpoint_id]
        assert await platform.count_states() == {HELD: 4, PENDING: 2}
        await settle_all(ledger.port, utc_now, asyncio.Event())
        assert await platform.count_states() == {HELD: 6}
    await database.close()


# ------------------------------------------------------------------------------------ killed in between


async def change_until_killed(settings: Settings, method: str, endpoint_id: str, parts: int) -> None:
    """Let another process change the status, and kill it when so many parts of the deliveries have followed."""
    environment = {
        "PATH": os.environ["PATH"],
        "CAREHOOK_HOME": str(settings.home),
        "CAREHOOK_ALLOW_HTTP": "true",
        "CAREHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
    }
    if settings.database_url is not None:
        environment["CAREHOOK_DATABASE_URL"] = settings.database_url.get_secret_value()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.servers.interrupted_status", method, endpoint_id, str(parts)),
        cwd=REPOSITORY,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"standing still\n"
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("parts", [0, 1])
@pytest.mark.parametrize(("method", "state"), [("pause", HELD), ("delete", CANCELLED)])
async def test_who_is_killed_while_deliveries_follow_leaves_the_rest_to_another(
    platform: Platform, settings: Settings, method: str, state: DeliveryState, parts: int
) -> None:
    with RecordingReceiver() as receiver:
        endpoint_id = await register(platform, 7, receiver.url)
        await change_until_killed(settings, method, endpoint_id, parts)
        assert await platform.count_states() == Counter({state: parts * PART, PENDING: 7 - parts * PART})
        async with open_worker(settings) as worker, running(worker):
            await wait_until_settled(platform)
        assert await platform.count_states() == {state: 7}
    assert receiver.requests == []
