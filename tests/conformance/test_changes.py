"""Whoever holds deliveries of an endpoint can ask whether it is still as it was when they were claimed."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from carehook.ledger.circuit import OPENS_AT
from carehook.ledger.port import LedgerUnavailable
from carehook.ledger.records import ClaimedDelivery
from carehook.ledger.states import EndpointStatus, Ordering, Transition
from tests.conformance.store import NOW, Store, build_finished


async def claim_revisions(store: Store, *endpoint_ids: str) -> Mapping[str, int]:
    """The revisions that one delivery for each of new endpoints was claimed with."""
    await store.add_endpoints(*endpoint_ids)
    await store.publish(*endpoint_ids)
    return {each.endpoint.id: each.endpoint.revision for each in await store.claim()}


CHANGES: dict[str, Callable[[Store], Awaitable[Any]]] = {
    "its URL": lambda store: store.change("ep_1", url="https://other.example"),
    "its secrets": lambda store: store.change("ep_1", sealed_secrets=b"\x00new"),
    "its limits": lambda store: store.change("ep_1", max_in_flight=1),
    "its ordering": lambda store: store.change("ep_1", ordering=Ordering.PATIENT),
    "paused": lambda store: store.set_status("ep_1", EndpointStatus.PAUSED),
    "deleted": lambda store: store.set_status("ep_1", EndpointStatus.DELETED),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_an_endpoint_that_changed_is_found_and_no_other(store: Store, name: str) -> None:
    other = await store.second()
    revisions = await claim_revisions(store, "ep_1", "ep_2")
    assert revisions.keys() == {"ep_1", "ep_2"}
    assert list(await store.queue.find_changed(revisions)) == []
    await CHANGES[name](other)
    assert list(await store.queue.find_changed(revisions)) == ["ep_1"]
    assert list(await store.queue.find_changed({"ep_2": revisions["ep_2"]})) == []


async def test_one_that_a_result_disabled_is_found(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish("ep_1", "ep_1")
    first, second = await store.claim()
    assert await store.finish(first, Transition.RESCHEDULE, due_at=NOW, disable_reason="410 Gone")
    assert list(await store.queue.find_changed({"ep_1": second.endpoint.revision})) == ["ep_1"]


async def test_one_that_was_changed_and_changed_back_is_found(store: Store) -> None:
    revisions = await claim_revisions(store, "ep_1")
    await store.set_status("ep_1", EndpointStatus.PAUSED)
    await store.set_status("ep_1", EndpointStatus.ACTIVE)
    assert list(await store.queue.find_changed(revisions)) == ["ep_1"]


async def test_what_is_claimed_after_a_change_is_not_found(store: Store) -> None:
    await claim_revisions(store, "ep_1")
    await store.change("ep_1", url="https://other.example")
    await store.publish("ep_1")
    anew = await store.claim_one()
    assert list(await store.queue.find_changed({"ep_1": anew.endpoint.revision})) == []


async def test_one_that_does_not_receive_is_found_whatever_its_revision(store: Store) -> None:
    await store.add_endpoints("ep_1", status=EndpointStatus.PAUSED)
    paused = await store.endpoint("ep_1")
    assert set(await store.queue.find_changed({"ep_1": paused.revision, "ep_unknown": 0})) == {"ep_1", "ep_unknown"}


async def test_how_it_goes_at_an_endpoint_is_no_change_of_it(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish(*["ep_1"] * (OPENS_AT + 1))
    *failing, last = await store.claim()
    results = [build_finished(each, Transition.RESCHEDULE, due_at=NOW) for each in failing]
    assert all(await store.queue.finish(results, NOW))
    assert (await store.lane("ep_1")).opened_at == NOW
    assert await revisions_hold(store, last)
    assert await store.finish(last)
    assert await revisions_hold(store, last)


async def revisions_hold(store: Store, claimed: ClaimedDelivery) -> bool:
    return not await store.queue.find_changed({claimed.endpoint.id: claimed.endpoint.revision})


async def test_of_none_none_is_found(store: Store) -> None:
    assert list(await store.queue.find_changed({})) == []


async def test_a_server_that_takes_no_writes_says_nothing_of_them(postgresql_store: Store) -> None:
    """As a standby, which may be behind the server at which endpoints are changed."""
    revisions = await claim_revisions(postgresql_store, "ep_1")
    async with postgresql_store.database.write() as connection:
        name = (await connection.execute(sa.text("SELECT current_database()"))).scalar_one()
        await connection.execute(sa.text(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'))
    demoted = await postgresql_store.second()
    with pytest.raises(LedgerUnavailable):
        await demoted.queue.find_changed(revisions)


async def test_a_store_that_is_gone_says_nothing_of_them(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as opened:
        store = await Store.open(f"sqlite:///{tmp_path}/missing/carehook.db", opened)
        with pytest.raises(LedgerUnavailable):
            await store.queue.find_changed({"ep_1": 0})
