"""Whoever holds claimed deliveries can ask which are not to be sent any more as they were claimed."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from carehook.ledger.circuit import OPENS_AT
from carehook.ledger.port import LedgerUnavailable
from carehook.ledger.records import ClaimedDelivery
from carehook.ledger.states import EndpointStatus, Ordering, Transition
from tests.conformance.store import LEASE, NOW, Store, build_finished


async def claim_new(store: Store, *endpoint_ids: str) -> Sequence[ClaimedDelivery]:
    """Claimed deliveries, one for each of new endpoints, in their order."""
    await store.add_endpoints(*dict.fromkeys(endpoint_ids))
    await store.publish(*endpoint_ids)
    claimed = sorted(await store.claim(), key=lambda each: each.endpoint.id)
    assert len(claimed) == len(endpoint_ids)
    return claimed


async def find_changed(store: Store, *claimed: ClaimedDelivery) -> list[ClaimedDelivery]:
    return list(await store.queue.find_changed(claimed))


CHANGES: dict[str, Callable[[Store], Awaitable[Any]]] = {
    "its URL": lambda store: store.change("ep_1", url="https://other.example"),
    "its secrets": lambda store: store.change("ep_1", sealed_secrets=b"\x00new"),
    "its limits": lambda store: store.change("ep_1", max_in_flight=1),
    "its ordering": lambda store: store.change("ep_1", ordering=Ordering.PATIENT),
    "paused": lambda store: store.set_status("ep_1", EndpointStatus.PAUSED),
    "paused, and nothing has followed": lambda store: store.change("ep_1", status=EndpointStatus.PAUSED),
    "deleted": lambda store: store.set_status("ep_1", EndpointStatus.DELETED),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_all_of_an_endpoint_that_changed_are_found_and_no_others(store: Store, name: str) -> None:
    other = await store.second()
    first, second, of_other = await claim_new(store, "ep_1", "ep_1", "ep_2")
    assert await find_changed(store, first, second, of_other) == []
    await CHANGES[name](other)
    assert await find_changed(store, first, of_other, second) == [first, second]
    assert await find_changed(store, of_other) == []


async def test_those_of_one_that_a_result_disabled_are_found(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish("ep_1", "ep_1")
    first, second = await store.claim()
    assert await store.finish(first, Transition.RESCHEDULE, due_at=NOW, disable_reason="410 Gone")
    assert await find_changed(store, second) == [second]


async def test_those_of_one_that_was_changed_and_changed_back_are_found(store: Store) -> None:
    [claimed] = await claim_new(store, "ep_1")
    await store.set_status("ep_1", EndpointStatus.PAUSED)
    await store.set_status("ep_1", EndpointStatus.ACTIVE)
    assert await find_changed(store, claimed) == [claimed]


async def test_what_is_claimed_after_a_change_is_not_found(store: Store) -> None:
    await claim_new(store, "ep_1")
    await store.change("ep_1", url="https://other.example")
    await store.publish("ep_1")
    anew = await store.claim_one()
    assert await find_changed(store, anew) == []


async def test_one_whose_endpoint_was_paused_before_it_was_read_is_found(store: Store) -> None:
    """A claim may know the endpoint as it was a moment after."""
    [claimed] = await claim_new(store, "ep_1")
    await store.change("ep_1", status=EndpointStatus.PAUSED)
    as_paused = replace(claimed, endpoint=await store.endpoint("ep_1"))
    assert await find_changed(store, as_paused) == [as_paused]


async def test_how_it_goes_at_an_endpoint_is_no_change(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish(*["ep_1"] * (OPENS_AT + 2))
    *failing, succeeding, last = await store.claim()
    results = [build_finished(each, Transition.RESCHEDULE, due_at=NOW) for each in failing]
    assert all(await store.queue.finish(results, NOW))
    assert (await store.lane("ep_1")).opened_at == NOW
    assert await find_changed(store, last) == []
    assert await store.finish(succeeding)
    assert await find_changed(store, last) == []


async def cancel(store: Store, claimed: ClaimedDelivery) -> None:
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.cancel(claimed.id, NOW)


ENDS: dict[str, Callable[[Store, ClaimedDelivery], Awaitable[Any]]] = {
    "cancelled": cancel,
    "its lease was over": lambda store, _: store.queue.recover_lost(NOW + LEASE),
    "given back": lambda store, claimed: store.queue.give_back([claimed]),
    "succeeded": lambda store, claimed: store.finish(claimed),
    "failed": lambda store, claimed: store.finish(claimed, Transition.RESCHEDULE, due_at=NOW),
}


@pytest.mark.parametrize("name", ENDS)
async def test_one_that_is_not_to_be_sent_under_its_lease_is_found_and_no_other(store: Store, name: str) -> None:
    other = await store.second()
    [over] = await claim_new(store, "ep_1")
    await store.publish("ep_1")
    [beside] = await store.claim(lease=2 * LEASE)
    assert await find_changed(store, over, beside) == []
    await ENDS[name](other, over)
    assert await find_changed(store, over, beside) == [over]


async def test_of_two_claims_of_one_delivery_the_older_is_found(store: Store) -> None:
    [older] = await claim_new(store, "ep_1")
    await store.queue.recover_lost(NOW + LEASE)
    newer = await store.claim_one(now=NOW + LEASE)
    assert newer.id == older.id
    assert await find_changed(store, older, newer) == [older]
    assert await find_changed(store, newer, older) == [older]


async def test_one_that_was_cancelled_and_given_back_may_be_sent_again_when_somebody_asks(store: Store) -> None:
    [claimed] = await claim_new(store, "ep_1")
    await cancel(store, claimed)
    async with store.ledger.transaction() as tx:
        assert not await tx.deliveries.retry(claimed.id, NOW), "its request might be in flight"
    await store.queue.give_back([claimed])
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.retry(claimed.id, NOW)
    anew = await store.claim_one()
    assert await find_changed(store, claimed, anew) == [claimed]


async def test_one_that_is_not_there_is_found(store: Store) -> None:
    [claimed] = await claim_new(store, "ep_1")
    unknown = replace(claimed, id="dlv_unknown")
    assert await find_changed(store, claimed, unknown) == [unknown]


async def test_of_none_none_is_found(store: Store) -> None:
    assert await find_changed(store) == []


async def test_a_server_that_takes_no_writes_says_nothing_of_them(postgresql_store: Store) -> None:
    """As a standby, which may be behind the server at which things are changed."""
    claimed = await claim_new(postgresql_store, "ep_1")
    async with postgresql_store.database.write() as connection:
        name = (await connection.execute(sa.text("SELECT current_database()"))).scalar_one()
        await connection.execute(sa.text(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'))
    demoted = await postgresql_store.second()
    with pytest.raises(LedgerUnavailable):
        await demoted.queue.find_changed(claimed)


async def test_a_store_that_is_gone_says_nothing_of_them(store: Store, tmp_path: Path) -> None:
    claimed = await claim_new(store, "ep_1")
    async with contextlib.AsyncExitStack() as opened:
        gone = await Store.open(f"sqlite:///{tmp_path}/missing/carehook.db", opened)
        with pytest.raises(LedgerUnavailable):
            await gone.queue.find_changed(claimed)
