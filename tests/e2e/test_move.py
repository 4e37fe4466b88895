"""The embedded store moves to a server with all that is in it, or nothing has changed; nothing is sent from both."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import sqlalchemy as sa

from carehook.bootstrap import move_embedded_store, open_carehook
from carehook.events import CATALOGUE
from carehook.ledger import moving
from carehook.ledger.connections.database import Database, parse_database_url
from carehook.ledger.moving import MoveRefused
from carehook.ledger.port import LedgerUnavailable
from carehook.ledger.sql.schema import migrate, read_version
from carehook.ledger.sql.tables import metadata
from tests.receivers import Answer, RecordingReceiver
from tests.servers.clients import execute
from tests.servers.installation import Installation, eventually
from tests.servers.postgres import PostgresServer
from tests.stores import ALL, PowerCut, build_settings, create_organization

REPORT = CATALOGUE["patient_report_sent"].example


def read_rows(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table but the facts of the installation itself."""

    async def read() -> dict[str, list[tuple[Any, ...]]]:
        database = Database(parse_database_url(url))
        async with database.read() as connection:
            found = {
                table.name: [
                    tuple(row) for row in await connection.execute(sa.select(table).order_by(*table.primary_key))
                ]
                for table in metadata.sorted_tables
                if table.name != "installation"
            }
        await database.close()
        return found

    return asyncio.run(read())


@pytest.fixture
def carehook(tmp_path: Path) -> Installation:
    """An installation on the embedded store."""
    return Installation(tmp_path, CAREHOOK_RETRY_SCHEDULE="600")


@pytest.fixture
def target(postgres_server: PostgresServer, postgres_database: str) -> str:
    """An empty database."""
    return postgres_server.plain_url(postgres_database)


def fill(carehook: Installation, url: str) -> tuple[str, str]:
    """An organization with care, events and deliveries, of which the first failed; its id, and an operator's token."""
    with carehook.start() as service:
        organization_id = service.call("POST", "/v1/organizations", {"name": "Example Hospital"}).body["id"]
        path = f"/v1/organizations/{organization_id}"
        assert service.call("POST", f"{path}/endpoints", {"url": url}).status == 201
        assert (
            service.call("PUT", "/v1/professionals/p1", {"name": "A", "avatar": "https://a.example/a.png"}).status < 300
        )
        history: dict[str, object] = {"allergies": [], "diseases": [], "medications": []}
        assert service.call("PUT", f"{path}/patients/c1", history).status < 300
        assert service.call("POST", f"{path}/events/batch", {"events": [REPORT] * 700}).status == 202
        service.wait_for_log("attempt", 700)
        token = service.token
    assert token
    return organization_id, token


def test_all_of_it_moves_and_goes_on_at_the_server(carehook: Installation, target: str) -> None:
    with RecordingReceiver(Answer(500)) as receiver:
        organization_id, token = fill(carehook, receiver.url)
    old_url = f"sqlite:///{carehook.home / 'carehook.db'}"
    before = read_rows(old_url)
    assert len(before["deliveries"]) == 700
    assert before["attempts"]
    assert before["patients"]
    done = carehook.run("move", target)
    assert "700" in done.stdout
    assert read_rows(target) == before
    with RecordingReceiver() as receiver, carehook.start(CAREHOOK_DATABASE_URL=target) as service:
        path = f"/v1/organizations/{organization_id}"
        (waiting,) = service.call("GET", f"{path}/deliveries?state=pending", token=token).body["data"]
        url = {"url": receiver.url}
        assert service.call("PATCH", f"/v1/endpoints/{waiting['endpoint_id']}", url, token=token).status == 200
        assert service.call("POST", f"/v1/deliveries/{waiting['id']}/retry", token=token).status < 300
        eventually(lambda: receiver.requests, "request")
        assert receiver.requests[0].headers["webhook-id"] == waiting["event_id"]


def test_what_waits_for_its_turn_is_sent_in_order_at_the_server(carehook: Installation, target: str) -> None:
    with RecordingReceiver(Answer(500)) as receiver, carehook.start() as service:
        organization_id = service.call("POST", "/v1/organizations", {"name": "Example Hospital"}).body["id"]
        path, token = f"/v1/organizations/{organization_id}", service.token
        made = service.call("POST", f"{path}/endpoints", {"url": receiver.url, "ordering": "patient"})
        events = service.call("POST", f"{path}/events/batch", {"events": [REPORT] * 4}).body["ids"]
        service.wait_for_log("attempt", 1)
    carehook.run("move", target)
    with RecordingReceiver() as receiver, carehook.start(CAREHOOK_DATABASE_URL=target) as service:
        waiting = service.call("GET", f"{path}/deliveries?state=pending", token=token).body["data"]
        waits = {each["event_id"]: each["waits_for"]["kind"] for each in waiting}
        assert waits == dict(zip(events, ["schedule", "order", "order", "order"], strict=True))
        events.append(service.call("POST", f"{path}/events", REPORT, token=token).body["id"])
        url = {"url": receiver.url}
        assert service.call("PATCH", f"/v1/endpoints/{made.body['id']}", url, token=token).status == 200
        (head,) = [each for each in waiting if each["event_id"] == events[0]]
        assert service.call("POST", f"/v1/deliveries/{head['id']}/retry", token=token).status < 300
        eventually(lambda: len(receiver.requests) == len(events), "all requests")
        assert [each.headers["webhook-id"] for each in receiver.requests] == events


def test_a_store_that_was_moved_is_not_opened_again(carehook: Installation, target: str) -> None:
    carehook.run("org", "create", "Example Hospital")
    moved = carehook.run("move", target)
    password = target.split(":")[2].split("@")[0]
    assert password not in moved.stdout + moved.stderr
    for command in (["serve"], ["org", "list"], ["move", target]):
        refused = carehook.run(*command, code=3)
        assert password not in refused.stderr
        assert "was moved to postgresql://" in refused.stderr
        assert "set CAREHOOK_DATABASE_URL" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_a_store_that_somebody_works_on_stays_where_it_is(carehook: Installation, target: str) -> None:
    with carehook.start() as service:
        refused = carehook.run("move", target, code=3)
        assert refused.stderr == "Carehook cannot do this: a Carehook works on this store: stop it first.\n"
        assert service.call("POST", "/v1/organizations", {"name": "Example Hospital"}).status == 201
    assert carehook.read("org", "list")["data"]


def test_where_there_is_no_store_nothing_is_moved_and_nothing_made(carehook: Installation, target: str) -> None:
    file = carehook.home / "carehook.db"
    sentence = f"There is no store to move: there is no {file}. CAREHOOK_HOME chooses the folder.\n"
    assert carehook.run("move", target, code=1).stderr == sentence
    assert not carehook.home.exists()
    carehook.home.mkdir()
    assert carehook.run("move", target, code=1).stderr == sentence
    assert list(carehook.home.iterdir()) == []

    async def find_tables() -> str | None:
        database = Database(parse_database_url(target))
        version = await read_version(database)
        await database.close()
        return version

    assert asyncio.run(find_tables()) is None


def test_a_database_that_holds_something_takes_no_other(carehook: Installation, target: str) -> None:
    Installation(carehook.folder / "other").run("org", "create", "Other Hospital")
    Installation(carehook.folder / "other").run("move", target)
    moved = read_rows(target)
    carehook.run("org", "create", "Example Hospital")
    refused = carehook.run("move", target, code=1)
    assert "already holds" in refused.stderr
    assert read_rows(target) == moved
    assert carehook.read("org", "list")["data"]


def test_another_versions_store_is_left_as_it_is(carehook: Installation, target: str) -> None:
    carehook.run("org", "create", "Example Hospital")

    async def prepare() -> None:
        database = Database(parse_database_url(target))
        await migrate(database)
        async with database.write() as connection:
            await connection.execute(sa.text("UPDATE alembic_version SET version_num = '0002'"))
        await database.close()

    async def read() -> str | None:
        database = Database(parse_database_url(target))
        version = await read_version(database)
        await database.close()
        return version

    asyncio.run(prepare())
    refused = carehook.run("move", target, code=1)
    assert "tables of another version (0002)" in refused.stderr
    assert asyncio.run(read()) == "0002"
    assert carehook.read("org", "list")["data"]


def test_a_row_that_the_server_does_not_take_keeps_all_where_they_are(carehook: Installation, target: str) -> None:
    carehook.run("org", "create", "Example Hospital")

    async def forbid() -> None:
        database = Database(parse_database_url(target))
        await migrate(database)
        await database.close()
        # Swallows the row, as a rule or a trigger of somebody's might.
        await execute(target, "CREATE RULE nothing AS ON INSERT TO organizations DO INSTEAD NOTHING")

    asyncio.run(forbid())
    refused = carehook.run("move", target, code=1)
    assert "Nothing was moved" in refused.stderr
    assert not any(read_rows(target).values())
    assert carehook.read("org", "list")["data"]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("sqlite:///elsewhere.db", "must be a PostgreSQL server"),
        ("mysql://x/y", "the target: the database URL begins with mysql:"),
        ("postgresql://u:secret-word@127.0.0.1:9/x", "does not answer"),
    ],
)
def test_a_target_that_is_none_is_refused_in_a_sentence(carehook: Installation, target: str, said: str) -> None:
    carehook.run("org", "create", "Example Hospital")
    done = carehook.run("move", target, code=1 if said.startswith("must") else 3)
    assert said in done.stderr
    assert "secret-word" not in done.stderr
    assert "Traceback" not in done.stderr
    assert carehook.read("org", "list")["data"]


@pytest.mark.parametrize("step", ["_close", "_open"])
async def test_a_move_that_is_interrupted_at_its_end_leaves_one_store_at_most_to_be_opened(
    tmp_path: Path, target: str, step: str
) -> None:
    settings = build_settings(tmp_path)
    at_target = build_settings(tmp_path, target)
    async with open_carehook(settings) as carehook:
        organization_id = await create_organization(carehook)
    with patch.object(moving, step, side_effect=PowerCut), pytest.raises(PowerCut):
        await move_embedded_store(settings, target)
    with pytest.raises(LedgerUnavailable, match="a move to this store was interrupted"):
        async with open_carehook(at_target):
            pass
    if step == "_close":
        async with open_carehook(settings) as carehook:
            await create_organization(carehook)
        with pytest.raises(MoveRefused, match="already holds"):
            await move_embedded_store(settings, target)
        return
    with pytest.raises(LedgerUnavailable, match="was moved to"):
        async with open_carehook(settings):
            pass
    await move_embedded_store(settings, target)
    async with open_carehook(at_target) as carehook:
        assert [each.id for each in (await carehook.insights.organizations(ALL)).data] == [organization_id]
