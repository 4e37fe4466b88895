"""Events in: stored with their deliveries or not at all, once for each idempotency key, many in a transaction."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from carehook.application import Application
from carehook.batching import BatcherClosedError
from carehook.bootstrap import open_carehook
from carehook.clock import utc_now
from carehook.config import Settings
from carehook.events import AnyEvent, build_body, parse_event
from carehook.intake.accept import KEYS_KEPT, Accepted, Intake
from carehook.ledger.states import DeliveryState
from carehook.metrics import Metrics
from carehook.refusals import Conflict, Invalid, NotFound
from tests.stores import (
    PowerCut,
    SetClock,
    WatchedLedger,
    build_settings,
    create_organization,
    list_deliveries,
    list_events,
    read_body,
    register,
)

CONTRACT = Path(__file__).parents[1] / "vectors" / "contract"
UNKNOWN = "org_018cc251f4007000800000000000dead"


@dataclass
class Site:
    """A Carehook, the settings that open another one on its store, and an organization of it."""

    carehook: Application
    settings: Settings
    clock: SetClock
    organization: str


@pytest.fixture(params=["embedded", "postgres"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    url = None
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_server").url(request.getfixturevalue("postgres_database"))
    settings = build_settings(tmp_path / "home", url)
    clock = SetClock()
    async with open_carehook(settings, create=True, clock=clock) as carehook:
        yield Site(carehook, settings, clock, await create_organization(carehook))


on_one_store = pytest.mark.parametrize("site", ["embedded"], indirect=True)


def read_example(name: str) -> bytes:
    return (CONTRACT / f"{name}.json").read_bytes()


def build_event(plan: str = "rest", occurred_on: float = 1704063600) -> AnyEvent:
    envelope = json.loads(read_example("patient_report_sent"))
    envelope["occurred_on"] = occurred_on
    envelope["payload"]["content"]["plan"] = plan
    return parse_event(json.dumps(envelope).encode())


async def count_stored(site: Site) -> int:
    return len(await list_events(site.carehook, site.organization))


# ------------------------------------------------------------------------------------ who receives


async def test_each_endpoint_that_is_subscribed_gets_a_delivery_and_no_other_organizations_does(site: Site) -> None:
    everything = await register(site.carehook, site.organization)
    reports = await register(site.carehook, site.organization, event_types=["patient_report_sent"])
    await register(site.carehook, site.organization, event_types=["patient_consultation_finished"])
    await register(site.carehook, await create_organization(site.carehook, "Another"))
    accepted = await site.carehook.intake.accept(site.organization, [build_event()])
    assert accepted.deliveries == 2
    found = await list_deliveries(site.carehook, site.organization)
    assert {each.endpoint_id for each in found} == {everything.endpoint.id, reports.endpoint.id}
    assert {each.event_id for each in found} == set(accepted.event_ids)


async def test_without_an_endpoint_the_event_is_stored_all_the_same(site: Site) -> None:
    accepted = await site.carehook.intake.accept(site.organization, [build_event()])
    assert accepted.deliveries == 0
    (event,) = await list_events(site.carehook, site.organization)
    assert (event.id,) == accepted.event_ids


async def test_a_paused_endpoints_delivery_is_held_until_it_is_resumed(site: Site) -> None:
    endpoint = (await register(site.carehook, site.organization)).endpoint
    await site.carehook.endpoints.pause(endpoint.id)
    await site.carehook.intake.accept(site.organization, [build_event()])
    (held,) = await list_deliveries(site.carehook, site.organization)
    assert (held.state, held.due_at) == (DeliveryState.HELD, None)
    await site.carehook.endpoints.resume(endpoint.id)
    (pending,) = await list_deliveries(site.carehook, site.organization)
    assert (pending.state, pending.due_at) == (DeliveryState.PENDING, site.clock())


async def test_a_deleted_endpoint_gets_nothing_and_one_registered_later_nothing_of_before(site: Site) -> None:
    endpoint = (await register(site.carehook, site.organization)).endpoint
    await site.carehook.endpoints.delete(endpoint.id)
    assert (await site.carehook.intake.accept(site.organization, [build_event()])).deliveries == 0
    await register(site.carehook, site.organization)
    assert await list_deliveries(site.carehook, site.organization) == []


# ------------------------------------------------------------------------------------ what is stored


@pytest.mark.parametrize("name", ["patient_report_sent", "patient_consultation_finished"])
async def test_the_contracts_examples_are_stored_as_the_bytes_that_their_body_is(site: Site, name: str) -> None:
    event = parse_event(read_example(name))
    accepted = await site.carehook.intake.accept(site.organization, [event])
    body = await read_body(site.carehook, accepted.event_ids[0])
    assert body == build_body(event)
    assert list(json.loads(body).items()) == list(json.loads(read_example(name)).items())


async def test_the_instant_stays_the_number_that_it_was(site: Site) -> None:
    for written in ("1704063600", "1704063600.25", "0", "1704063600.123456"):
        event = build_event(occurred_on=json.loads(written))
        (event_id,) = (await site.carehook.intake.accept(site.organization, [event])).event_ids
        assert f'"occurred_on":{written},'.encode() in await read_body(site.carehook, event_id)
        shown = await site.carehook.insights.event(event_id)
        assert f'"occurred_on":{written},' in shown.model_dump_json()


async def test_a_batch_answers_in_its_order(site: Site) -> None:
    await register(site.carehook, site.organization)
    plans = [f"plan {number}" for number in range(30)]
    accepted = await site.carehook.intake.accept(site.organization, [build_event(plan) for plan in plans])
    assert accepted.deliveries == 30
    bodies = [json.loads(await read_body(site.carehook, event_id)) for event_id in accepted.event_ids]
    assert [body["payload"]["content"]["plan"] for body in bodies] == plans


# ------------------------------------------------------------------------------------ refusals


@on_one_store
@pytest.mark.parametrize("organization", [UNKNOWN, "org_1", "", "\x00", "'; --"])
async def test_an_unknown_organization_is_refused(site: Site, organization: str) -> None:
    with pytest.raises(NotFound, match="There is no organization"):
        await site.carehook.intake.accept(organization, [build_event()])


@on_one_store
async def test_no_events_are_refused(site: Site) -> None:
    with pytest.raises(Invalid, match="events must hold at least one event"):
        await site.carehook.intake.accept(site.organization, [])


@on_one_store
@pytest.mark.parametrize("key", ["", "k" * 256, "two words", "ключ", "line\nbreak", "\x00"])
async def test_a_key_that_is_none_is_refused(site: Site, key: str) -> None:
    with pytest.raises(Invalid) as raised:
        await site.carehook.intake.accept(site.organization, [build_event()], key)
    assert raised.value.errors[0].field == "Idempotency-Key"
    assert await count_stored(site) == 0


# ------------------------------------------------------------------------------------ idempotency keys


async def test_a_repeated_key_gets_the_first_answer_whatever_has_changed_since(site: Site) -> None:
    await register(site.carehook, site.organization)
    events = [build_event("a"), build_event("b")]
    first = await site.carehook.intake.accept(site.organization, events, "key")
    await register(site.carehook, site.organization)
    assert await site.carehook.intake.accept(site.organization, events, "key") == first
    assert await count_stored(site) == 2
    assert len(await list_deliveries(site.carehook, site.organization)) == 2


async def test_a_key_used_for_another_request_is_refused(site: Site) -> None:
    await site.carehook.intake.accept(site.organization, [build_event("a")], "key")
    for others in ([build_event("b")], [build_event("a"), build_event("a")]):
        with pytest.raises(Invalid, match="Idempotency-Key was used for another request"):
            await site.carehook.intake.accept(site.organization, others, "key")
    assert await count_stored(site) == 1


@on_one_store
async def test_organizations_do_not_share_keys(site: Site) -> None:
    other = await create_organization(site.carehook, "Another")
    first = await site.carehook.intake.accept(site.organization, [build_event()], "key")
    second = await site.carehook.intake.accept(other, [build_event("else")], "key")
    assert first.event_ids != second.event_ids


async def test_the_same_key_many_times_in_one_transaction_is_one_event(site: Site) -> None:
    intake = site.carehook.intake
    answers = await asyncio.gather(*(intake.accept(site.organization, [build_event()], "key") for _ in range(8)))
    assert len(set(answers)) == 1
    assert await count_stored(site) == 1


async def test_two_processes_with_the_same_keys_at_once_store_each_event_once(site: Site) -> None:
    keys = [f"key-{number}" for number in range(25)]
    async with open_carehook(site.settings, clock=site.clock) as other:
        ours, theirs = (
            asyncio.gather(*(one.intake.accept(site.organization, [build_event(key)], key) for key in keys))
            for one in (site.carehook, other)
        )
        assert await ours == await theirs
    assert await count_stored(site) == len(keys)


async def test_two_processes_with_the_same_key_for_different_requests_refuse_one(site: Site) -> None:
    async with open_carehook(site.settings, clock=site.clock) as other:
        answers = await asyncio.gather(
            site.carehook.intake.accept(site.organization, [build_event("a")], "key"),
            other.intake.accept(site.organization, [build_event("b")], "key"),
            return_exceptions=True,
        )
    assert {type(answer) for answer in answers} == {Accepted, Invalid}
    assert await count_stored(site) == 1


async def test_keys_are_forgotten_after_a_week_and_not_before(site: Site) -> None:
    await site.carehook.intake.accept(site.organization, [build_event("a")], "key")
    site.clock.now += KEYS_KEPT
    assert await site.carehook.intake.forget_old_keys() == 0
    site.clock.advance(seconds=1)
    assert await site.carehook.intake.forget_old_keys() == 1
    await site.carehook.intake.accept(site.organization, [build_event("b")], "key")
    assert await count_stored(site) == 2


# ------------------------------------------------------------------------------------ group commit


async def test_64_publishers_at_once_share_transactions_and_each_gets_its_own_answer(site: Site) -> None:
    await register(site.carehook, site.organization)
    watched = WatchedLedger(site.carehook.ledger)
    intake = Intake(watched.port, Metrics(), utc_now)
    plans = [f"plan {number}" for number in range(64)]
    answers = await asyncio.gather(*(intake.accept(site.organization, [build_event(plan)]) for plan in plans))
    assert watched.transactions <= 2
    assert len({answer.event_ids for answer in answers}) == 64
    for plan, answer in zip(plans, answers, strict=True):
        assert answer.deliveries == 1
        body = json.loads(await read_body(site.carehook, answer.event_ids[0]))
        assert body["payload"]["content"]["plan"] == plan


async def test_one_refusal_in_a_shared_transaction_is_its_own(site: Site) -> None:
    watched = WatchedLedger(site.carehook.ledger)
    intake = Intake(watched.port, Metrics(), utc_now)
    await intake.accept(site.organization, [build_event("first")], "key")
    watched.transactions = 0
    good, unknown, reused, also_good = await asyncio.gather(
        intake.accept(site.organization, [build_event()]),
        intake.accept(UNKNOWN, [build_event()]),
        intake.accept(site.organization, [build_event("other")], "key"),
        intake.accept(site.organization, [build_event()]),
        return_exceptions=True,
    )
    assert watched.transactions == 1
    assert isinstance(good, Accepted)
    assert isinstance(also_good, Accepted)
    assert isinstance(unknown, NotFound)
    assert isinstance(reused, Invalid)
    assert await count_stored(site) == 3


async def test_a_store_that_fails_stores_nothing_tells_everyone_and_is_not_asked_for_each(site: Site) -> None:
    await register(site.carehook, site.organization)
    watched = WatchedLedger(site.carehook.ledger)
    intake = Intake(watched.port, metrics := Metrics(), utc_now)
    await intake.accept(site.organization, [build_event()], "measured")
    for step in range(1, watched.steps + 1):
        watched.steps, watched.transactions, watched.fail_after = 0, 0, step
        answers = await asyncio.gather(
            *(intake.accept(site.organization, [build_event()], f"key-{step}-{n}") for n in range(10)),
            return_exceptions=True,
        )
        assert [type(answer) for answer in answers] == [PowerCut] * 10
        assert watched.transactions == 1
    assert await count_stored(site) == 1
    assert len(await list_deliveries(site.carehook, site.organization)) == 1
    watched.fail_after = None
    await intake.accept(site.organization, [build_event()], "key-1-1")
    assert metrics.registry.get_sample_value(
        "carehook_events_accepted_total", {"event_type": "patient_report_sent"}
    ) == await count_stored(site)


@on_one_store
async def test_a_caller_who_leaves_does_not_disturb_those_in_the_same_transaction(site: Site) -> None:
    tasks = [
        asyncio.create_task(site.carehook.intake.accept(site.organization, [build_event(str(number))]))
        for number in range(4)
    ]
    await asyncio.sleep(0)
    tasks[1].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Accepted, asyncio.CancelledError, Accepted, Accepted]


@on_one_store
async def test_closing_stores_what_was_submitted_and_refuses_the_rest(site: Site) -> None:
    intake = Intake(site.carehook.ledger, Metrics(), utc_now)
    submitted = [asyncio.create_task(intake.accept(site.organization, [build_event()])) for _ in range(20)]
    await asyncio.sleep(0)
    await intake.close()
    assert await count_stored(site) == 20
    await asyncio.gather(*submitted)
    with pytest.raises(BatcherClosedError):
        await intake.accept(site.organization, [build_event()])


async def test_what_is_accepted_while_carehook_closes_is_stored(site: Site) -> None:
    async with open_carehook(site.settings) as other:
        submitted = [asyncio.create_task(other.intake.accept(site.organization, [build_event()])) for _ in range(20)]
        await asyncio.sleep(0)
    assert await count_stored(site) == 20
    assert len({answer.event_ids for answer in await asyncio.gather(*submitted)}) == 20


@on_one_store
async def test_what_is_accepted_is_stored_even_if_carehook_fails_around_it(site: Site) -> None:
    submitted: list[asyncio.Task[Accepted]] = []

    async def fail_after_submitting() -> None:
        async with open_carehook(site.settings) as other:
            submitted.append(asyncio.create_task(other.intake.accept(site.organization, [build_event()])))
            await asyncio.sleep(0)
            raise PowerCut

    with pytest.raises(PowerCut):
        await fail_after_submitting()
    await submitted[0]
    assert await count_stored(site) == 1


# ------------------------------------------------------------------------------------ examples


async def test_an_example_goes_to_one_endpoint_alone_and_is_marked(site: Site) -> None:
    chosen = (await register(site.carehook, site.organization, event_types=["patient_report_sent"])).endpoint
    await register(site.carehook, site.organization)
    sent = await site.carehook.examples.send(chosen.id)
    (event,) = await list_events(site.carehook, site.organization)
    assert (event.id, event.is_test, event.type) == (sent.event_id, True, "patient_report_sent")
    (delivery,) = await list_deliveries(site.carehook, site.organization)
    assert (delivery.id, delivery.endpoint_id) == (sent.delivery_id, chosen.id)
    assert json.loads(await read_body(site.carehook, event.id)) == json.loads(read_example("patient_report_sent"))


@on_one_store
async def test_an_example_is_not_sent_where_it_cannot_be_received(site: Site) -> None:
    endpoint = (await register(site.carehook, site.organization)).endpoint
    with pytest.raises(Invalid, match="event_type must be one of"):
        await site.carehook.examples.send(endpoint.id, "patient_born")
    await site.carehook.endpoints.pause(endpoint.id)
    with pytest.raises(Conflict, match="The endpoint is paused"):
        await site.carehook.examples.send(endpoint.id)
    await site.carehook.endpoints.delete(endpoint.id)
    with pytest.raises(NotFound):
        await site.carehook.examples.send(endpoint.id)
    assert await count_stored(site) == 0
