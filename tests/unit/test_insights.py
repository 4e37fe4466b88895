"""What every screen reads: all that was stored, newest first, with secrets masked and nothing a terminal acts on."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from carehook.application import Application
from carehook.bootstrap import open_carehook
from carehook.directory.authentication import BearerAuthentication
from carehook.events import CATALOGUE, parse_event
from carehook.insights import DeliveryDetailView, Insights
from carehook.keyring import Keyring
from carehook.ledger.records import AttemptOutcome, DeliveryFilter, PageRequest, Role, StoredEvent
from carehook.ledger.states import DeliveryState
from carehook.refusals import NotFound
from tests.receivers import Answer, RecordingReceiver
from tests.stores import ALL, build_settings, create_organization, register

REPORT, FINISHED = (
    parse_event(json.dumps(CATALOGUE[name].example).encode())
    for name in ("patient_report_sent", "patient_consultation_finished")
)
PATIENT = "patient_code"


@pytest.fixture
async def carehook(tmp_path: Path) -> AsyncIterator[Application]:
    settings = build_settings(tmp_path).model_copy(update={"retry_schedule": (0.05,)})
    async with open_carehook(settings) as application:
        working = asyncio.create_task(application.worker.run())
        yield application
        application.worker.stop()
        await working


async def deliver(carehook: Application, *answers: Answer | int) -> DeliveryDetailView:
    """A delivery to a receiver that answers so, once nothing more happens to it."""
    organization = await create_organization(carehook)
    with RecordingReceiver(*answers) as receiver:
        await register(carehook, organization, url=receiver.url)
        (event_id,) = (await carehook.intake.accept(organization, [REPORT])).event_ids
        async with asyncio.timeout(30):
            while True:
                (delivery,) = (await carehook.insights.event(event_id)).deliveries
                if delivery.finished_at is not None and not delivery.in_flight:
                    return await carehook.insights.delivery(delivery.id)
                await asyncio.sleep(0.02)


def read_files(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def test_a_delivery_shows_each_attempt_and_how_a_refusal_began(carehook: Application) -> None:
    delivery = await deliver(carehook, Answer(500, body="café\tis\nclosed".encode()), Answer(200, body=b"thanks"))
    assert (delivery.state, delivery.attempt_count, delivery.due_at) == (DeliveryState.SUCCEEDED, 2, None)
    failed, succeeded = delivery.attempts
    assert (failed.number, failed.outcome, failed.status_code) == (1, AttemptOutcome.RESPONDED, 500)
    assert (failed.reason, failed.response_excerpt) == ("the endpoint answered 500", "café\tis\nclosed")
    assert (succeeded.number, succeeded.status_code, succeeded.reason) == (2, 200, None)
    assert succeeded.response_excerpt is None
    assert failed.duration_ms > 0
    assert failed.started_at <= succeeded.started_at


async def test_an_excerpt_is_text_that_no_terminal_acts_on(carehook: Application) -> None:
    delivery = await deliver(carehook, Answer(500, body=b"\x1b[2J\x07\x00\xff\xc2\x9b31m ok"), 200)
    excerpt = delivery.attempts[0].response_excerpt
    assert excerpt is not None
    assert excerpt.endswith("31m ok")
    assert all(letter.isprintable() for letter in excerpt)


async def test_an_excerpt_is_sealed_and_of_its_own_delivery(carehook: Application, tmp_path: Path) -> None:
    delivery = await deliver(carehook, Answer(500, body=b"patient 7 is unknown here"), 200)
    assert b"patient 7 is unknown" not in read_files(tmp_path)
    elsewhere = Insights(carehook.ledger, Keyring(bytes(32)), carehook.clock)
    (attempt, _) = (await elsewhere.delivery(delivery.id)).attempts
    assert (attempt.status_code, attempt.response_excerpt) == (500, None)


async def test_metrics_tell_what_was_done_and_no_patient(carehook: Application) -> None:
    await deliver(carehook, 500, 200)
    text = carehook.metrics.render(await carehook.insights.backlog(), carehook.clock()).decode()
    assert 'carehook_events_accepted_total{event_type="patient_report_sent"} 1.0' in text
    assert 'carehook_attempts_total{outcome="failed"} 1.0' in text
    assert 'carehook_attempts_total{outcome="succeeded"} 1.0' in text
    assert "carehook_delivery_seconds_count 1.0" in text
    assert PATIENT not in text
    assert not any(prefix in text for prefix in ("org_", "ep_", "evt_", "dlv_", "127.0.0.1"))


async def test_lists_are_newest_first_and_go_on_where_they_stopped(carehook: Application) -> None:
    organization = await create_organization(carehook)
    accepted = await carehook.intake.accept(organization, [REPORT, FINISHED, REPORT])
    first = await carehook.insights.events(organization, PageRequest(limit=2))
    assert [each.id for each in first.data] == list(accepted.event_ids[:0:-1])
    await carehook.intake.accept(organization, [FINISHED])
    rest = await carehook.insights.events(organization, PageRequest(limit=2, cursor=first.next_cursor))
    assert ([each.id for each in rest.data], rest.next_cursor) == ([accepted.event_ids[0]], None)


async def test_deliveries_can_be_chosen(carehook: Application) -> None:
    organization = await create_organization(carehook)
    paused = (await register(carehook, organization)).endpoint
    other = (await register(carehook, organization, event_types=["patient_report_sent"])).endpoint
    for endpoint in (paused, other):
        await carehook.endpoints.pause(endpoint.id)
    ids = (await carehook.intake.accept(organization, [REPORT, FINISHED])).event_ids

    async def find(**only: Any) -> set[tuple[str, str]]:
        found = await carehook.insights.deliveries(organization, DeliveryFilter(**only), ALL)
        return {(each.event_id, each.endpoint_id) for each in found.data}

    assert await find() == {(ids[0], paused.id), (ids[0], other.id), (ids[1], paused.id)}
    assert await find(endpoint_id=other.id) == {(ids[0], other.id)}
    assert await find(event_type="patient_consultation_finished") == {(ids[1], paused.id)}
    assert await find(event_id=ids[0], endpoint_id=paused.id) == {(ids[0], paused.id)}
    assert await find(state=DeliveryState.PENDING) == set()
    assert len(await find(state=DeliveryState.HELD)) == 3


async def test_an_organization_sees_its_own_alone(carehook: Application) -> None:
    one, other = [await create_organization(carehook, name) for name in ("One", "Other")]
    await register(carehook, one, event_types=["patient_consultation_finished"])
    await carehook.intake.accept(one, [REPORT])
    assert (await carehook.insights.events(other, ALL)).data == []
    assert (await carehook.insights.endpoints(other, ALL)).data == []
    assert (await carehook.insights.deliveries(other, DeliveryFilter(), ALL)).data == []
    assert [each.name for each in (await carehook.insights.organizations(ALL)).data] == ["Other", "One"]


async def test_what_is_not_there_is_refused(carehook: Application) -> None:
    insights = carehook.insights
    reads: list[Callable[[str], Awaitable[object]]] = [
        insights.organization,
        insights.endpoint,
        insights.event,
        insights.delivery,
        lambda unknown: insights.endpoints(unknown, ALL),
        lambda unknown: insights.events(unknown, ALL),
        lambda unknown: insights.deliveries(unknown, DeliveryFilter(), ALL),
    ]
    for read in reads:
        with pytest.raises(NotFound, match=r"There is no .* 'unknown'"):
            await read("unknown")


async def test_an_endpoint_whose_secrets_do_not_open_is_shown_without_them(carehook: Application) -> None:
    endpoint = (await register(carehook, await create_organization(carehook))).endpoint
    async with carehook.ledger.transaction() as transaction:
        await transaction.endpoints.update(dataclasses.replace(endpoint, sealed_secrets=b"damaged"))
    shown = await carehook.insights.endpoint(endpoint.id)
    assert (shown.url, shown.authentication, shown.signature_value) == (endpoint.url, None, "********")


async def test_what_is_shown_once_is_what_the_organization_needs(carehook: Application) -> None:
    new = {"signature_value": "agreed", "authentication": {"type": "bearer", "token": "t0ken"}}
    created = await register(carehook, await create_organization(carehook), **new)
    view = await carehook.insights.created(created, reveal_signature_value=True)
    assert view.signature_value == "agreed"
    assert view.signing_secret == created.verification_secret.get_secret_value()
    assert isinstance(view.authentication, BearerAuthentication)
    assert "t0ken" not in view.model_dump_json()
    hidden = await carehook.insights.created(created, reveal_signature_value=False)
    assert hidden.signature_value == "********"


async def test_tokens_are_listed_without_their_secrets(carehook: Application) -> None:
    organization = await create_organization(carehook)
    made = await carehook.tokens.create(Role.PUBLISHER, organization)
    (shown,) = (await carehook.insights.tokens(ALL)).data
    assert (shown.id, shown.role, shown.organization_id) == (made.token.id, Role.PUBLISHER, organization)
    assert set(type(shown).model_fields) == {"id", "role", "organization_id", "created_at", "revoked_at"}


async def test_no_list_shows_what_a_body_holds(carehook: Application) -> None:
    organization = await create_organization(carehook)
    await register(carehook, organization, event_types=["patient_report_sent"])
    (event_id,) = (await carehook.intake.accept(organization, [FINISHED])).event_ids
    for shown in (await carehook.insights.events(organization, ALL), await carehook.insights.event(event_id)):
        assert PATIENT not in shown.model_dump_json()
        assert "allerg" not in shown.model_dump_json()
    async with carehook.ledger.snapshot() as snapshot:
        stored = await snapshot.events.get(event_id)
    assert isinstance(stored, StoredEvent)
    assert PATIENT in stored.body.decode()
    assert PATIENT not in repr(stored)
