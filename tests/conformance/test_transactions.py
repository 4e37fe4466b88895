"""A transaction is all or nothing, and what it stored is read back as it was."""

import asyncio
from dataclasses import replace

import pytest

from carehook.ledger.records import DeliveryFilter, Organization, PageRequest
from carehook.ledger.states import DeliveryState, EndpointStatus, Ordering
from tests.conformance.store import NOW, ORGANIZATION, SECOND, Store, build_delivery, build_endpoint, build_event


async def test_what_was_committed_is_seen_by_another_process(store: Store) -> None:
    await store.add_organization()
    other = await store.second()
    async with other.ledger.snapshot() as tx:
        assert await tx.organizations.get(ORGANIZATION) == Organization(ORGANIZATION, "Insurer", NOW)


async def test_what_is_not_committed_is_seen_by_nobody(store: Store) -> None:
    other = await store.second()
    async with store.ledger.transaction() as tx:
        await tx.organizations.add(Organization(ORGANIZATION, "Insurer", NOW))
        async with other.ledger.snapshot() as reading:
            assert await reading.organizations.get(ORGANIZATION) is None


async def test_an_exception_undoes_all_of_it(store: Store) -> None:
    await store.add_endpoints("ep_1")
    event = build_event()

    async def add_and_stop() -> None:
        async with store.ledger.transaction() as tx:
            await tx.events.add([event])
            await tx.deliveries.add([build_delivery(event, "ep_1")])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        await add_and_stop()
    async with store.ledger.snapshot() as tx:
        assert await tx.events.get(event.id) is None
        assert await tx.deliveries.of_event(event.id) == []


async def test_a_cancelled_transaction_is_undone_and_the_next_one_works(store: Store) -> None:
    begun = asyncio.Event()

    async def add_and_wait() -> None:
        async with store.ledger.transaction() as tx:
            await tx.organizations.add(Organization("org_cancelled", "Insurer", NOW))
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(add_and_wait())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.add_organization()
    async with store.ledger.snapshot() as tx:
        assert await tx.organizations.existing(["org_cancelled", ORGANIZATION]) == {ORGANIZATION}


async def test_a_snapshot_sees_one_state_throughout(store: Store) -> None:
    async with store.ledger.snapshot() as tx:
        before = await tx.organizations.page(PageRequest())
        await store.add_organization()
        assert await tx.organizations.page(PageRequest()) == before


async def test_a_snapshot_cannot_write(store: Store) -> None:
    with pytest.raises(Exception, match=r"read-?only"):
        async with store.ledger.snapshot() as tx:
            await tx.organizations.add(Organization(ORGANIZATION, "Insurer", NOW))


async def test_an_event_comes_back_byte_for_byte(store: Store) -> None:
    await store.add_organization()
    event = build_event(body=bytes(range(256)), is_test=True, occurred_on=1704067200.123456)
    async with store.ledger.transaction() as tx:
        await tx.events.add([event])
    async with store.ledger.snapshot() as tx:
        assert await tx.events.get(event.id) == event


async def test_adding_nothing_stores_nothing(store: Store) -> None:
    async with store.ledger.transaction() as tx:
        await tx.events.add([])
        await tx.deliveries.add([])
        assert await tx.endpoints.recipients([]) == []
        assert (await tx.deliveries.backlog()).waiting == 0


async def test_an_event_reaches_an_endpoint_once(store: Store) -> None:
    await store.add_endpoints("ep_1")
    event = build_event()

    async def add_twice() -> None:
        async with store.ledger.transaction() as tx:
            await tx.events.add([event])
            await tx.deliveries.add([build_delivery(event, "ep_1"), build_delivery(event, "ep_1")])

    with pytest.raises(Exception, match=r"(?i)unique"):
        await add_twice()
    async with store.ledger.snapshot() as tx:
        assert await tx.events.get(event.id) is None


async def test_no_error_tells_a_body(store: Store) -> None:
    await store.add_organization()
    event = build_event(body=b"allergic to penicillin")
    with pytest.raises(Exception, match=r"(?i)unique") as raised:
        async with store.ledger.transaction() as tx:
            await tx.events.add([event, event])
    assert "penicillin" not in f"{raised.value!r} {raised.value}"


async def test_an_instant_without_a_time_zone_is_refused(store: Store) -> None:
    with pytest.raises(Exception, match="time zone"):
        async with store.ledger.transaction() as tx:
            await tx.organizations.add(Organization(ORGANIZATION, "Insurer", NOW.replace(tzinfo=None)))


async def test_an_endpoint_is_changed_in_every_field(store: Store) -> None:
    await store.add_endpoints("ep_1")
    changed = build_endpoint(
        "ep_1",
        url="https://other.example",
        description="Other",
        event_types=(),
        status=EndpointStatus.PAUSED,
        status_reason="holiday",
        sealed_secrets=b"new",
        updated_at=NOW + SECOND,
        max_in_flight=3,
        rate_limit=2.5,
        ordering=Ordering.PATIENT,
    )
    async with store.ledger.transaction() as tx:
        await tx.endpoints.update(changed)
    assert await store.endpoint("ep_1") == replace(changed, revision=1)


async def test_a_deleted_endpoint_is_found_nowhere(store: Store) -> None:
    await store.add_endpoints("ep_1", "ep_2")
    await store.set_status("ep_1", EndpointStatus.DELETED)
    async with store.ledger.transaction() as tx:
        assert await tx.endpoints.get("ep_1") is None
        assert [each.id for each in (await tx.endpoints.page(ORGANIZATION, PageRequest())).rows] == ["ep_2"]
        assert [each.id for each in await tx.endpoints.recipients([ORGANIZATION])] == ["ep_2"]


async def test_recipients_are_those_of_the_organizations_asked_for(store: Store) -> None:
    await store.add_endpoints("ep_1", "ep_2")
    await store.add_organization("org_2")
    async with store.ledger.transaction() as tx:
        await tx.endpoints.add(build_endpoint("ep_3", organization_id="org_2"))
        assert [each.id for each in await tx.endpoints.recipients([ORGANIZATION])] == ["ep_1", "ep_2"]
        assert len(await tx.endpoints.recipients([ORGANIZATION, "org_2"])) == 3


async def test_a_page_goes_on_where_the_last_one_ended_while_rows_arrive(store: Store) -> None:
    await store.add_endpoints("ep_1")
    ids = await store.publish(*["ep_1"] * 5)
    async with store.ledger.snapshot() as tx:
        first = await tx.deliveries.page(ORGANIZATION, DeliveryFilter(), PageRequest(limit=2))
    await store.publish(*["ep_1"] * 3)
    async with store.ledger.snapshot() as tx:
        second = await tx.deliveries.page(ORGANIZATION, DeliveryFilter(), PageRequest(2, first.next_cursor))
        third = await tx.deliveries.page(ORGANIZATION, DeliveryFilter(), PageRequest(2, second.next_cursor))
    assert [row.id for page in (first, second, third) for row in page.rows] == ids[::-1]
    assert third.next_cursor is None


async def test_a_page_that_ends_with_the_last_row_is_the_last(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish("ep_1", "ep_1")
    async with store.ledger.snapshot() as tx:
        page = await tx.events.page(ORGANIZATION, PageRequest(limit=2))
    assert len(page.rows) == 2
    assert page.next_cursor is None


async def test_deliveries_are_listed_by_every_filter(store: Store) -> None:
    await store.add_endpoints("ep_1", "ep_2")
    first, _ = await store.publish("ep_1", "ep_2")
    [held] = await store.publish("ep_2", state=DeliveryState.HELD)
    event_id = (await store.delivery(first)).event_id

    async def listed(only: DeliveryFilter, organization_id: str = ORGANIZATION) -> list[str]:
        async with store.ledger.snapshot() as tx:
            return [row.id for row in (await tx.deliveries.page(organization_id, only, PageRequest())).rows]

    assert await listed(DeliveryFilter(state=DeliveryState.HELD)) == [held]
    assert await listed(DeliveryFilter(endpoint_id="ep_1")) == [first]
    assert await listed(DeliveryFilter(event_id=event_id)) == [first]
    assert await listed(DeliveryFilter(event_type="other")) == []
    assert len(await listed(DeliveryFilter(event_type="patient_report_sent"))) == 3
    assert await listed(DeliveryFilter(), "org_other") == []


async def test_old_answers_are_forgotten(store: Store) -> None:
    await store.add_organization()
    await store.answer("old", now=NOW - SECOND)
    await store.answer("new")
    async with store.ledger.transaction() as tx:
        assert await tx.idempotency_keys.forget(NOW) == 1
    assert await store.answered("old", "new") == {"new"}


async def test_an_endpoint_update_leaves_others_alone(store: Store) -> None:
    await store.add_endpoints("ep_1", "ep_2")
    before = await store.endpoint("ep_2")
    async with store.ledger.transaction() as tx:
        await tx.endpoints.update(replace(before, id="ep_1", description="changed"))
    assert await store.endpoint("ep_2") == before
