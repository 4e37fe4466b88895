"""An endpoint that only fails is spared: its deliveries wait, one probe goes at a time, and at last it is disabled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest

from carehook.ledger.circuit import (
    DISABLED_AFTER,
    FIRST_PROBE_AFTER,
    LONGEST_PROBE_AFTER,
    OPENS_AT,
    TRIED_FOR,
    decide_disabling,
)
from carehook.ledger.records import AttemptOutcome, ClaimedDelivery, Lane
from carehook.ledger.states import DeliveryState, EndpointStatus, Transition
from tests.conformance.store import LEASE, NOW, SECOND, Store, build_finished

PROBED = NOW + 1.2 * FIRST_PROBE_AFTER + SECOND
"""When the first probe of a circuit that opened at NOW is due, whatever its jitter."""

WEEK = timedelta(days=7)


async def fail(
    worker: Store,
    claimed: Sequence[ClaimedDelivery],
    now: datetime = NOW,
    *,
    due_at: datetime | None = None,
    started_at: datetime | None = None,
    outcome: AttemptOutcome = AttemptOutcome.RESPONDED,
) -> None:
    """Each failed at `now`, and is due again at once unless it is told otherwise."""
    results = [
        build_finished(each, Transition.RESCHEDULE, due_at=due_at or now, started_at=started_at or now, outcome=outcome)
        for each in claimed
    ]
    assert all(await worker.queue.finish(results, now))


async def succeed(worker: Store, claimed: ClaimedDelivery, now: datetime = NOW) -> None:
    assert await worker.queue.finish([build_finished(claimed, started_at=now)], now) == [True]


async def open_circuit(store: Store, *, deliveries: int = OPENS_AT, now: datetime = NOW) -> list[str]:
    """Let an endpoint fail until its circuit opens; its deliveries, all due again."""
    await store.add_endpoints("ep_1")
    ids = await store.publish(*["ep_1"] * deliveries)
    await fail(store, await store.claim(OPENS_AT, now=now), now)
    assert (await store.lane("ep_1")).opened_at == now
    return ids


async def find_probe_at(store: Store) -> datetime:
    probe_at = (await store.lane("ep_1")).probe_at
    assert probe_at is not None
    return probe_at


async def test_ten_failures_in_a_row_over_batches_and_workers_open_it(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish(*["ep_1"] * 12)
    other = await store.second()
    await fail(store, await store.claim(4))
    await fail(other, await other.claim(5))
    lane = await store.lane("ep_1")
    assert (lane.failure_streak, lane.failing_since, lane.opened_at) == (9, NOW, None)
    await fail(store, await store.claim(1), NOW + SECOND)
    lane = await other.lane("ep_1")
    assert (lane.failure_streak, lane.failing_since, lane.opened_at) == (10, NOW, NOW + SECOND)
    assert lane.last_failure == "500 Internal Server Error"
    assert await store.claim(now=NOW + SECOND) == []
    assert await other.claim(now=NOW + SECOND) == []


async def test_workers_at_once_lose_no_failure(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish(*["ep_1"] * 8)
    other = await store.second()
    one, two = await store.claim(4), await other.claim(4)
    await asyncio.gather(*(fail(store, [each]) for each in one), *(fail(other, [each]) for each in two))
    assert (await store.lane("ep_1")).failure_streak == 8


async def test_a_success_in_between_begins_anew(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish(*["ep_1"] * 30)
    await fail(store, await store.claim(9))
    await succeed(store, (await store.claim(1))[0])
    assert await store.lane("ep_1") == Lane()
    await fail(store, await store.claim(9))
    assert len(await store.claim(5)) == 5


async def test_the_order_of_results_within_a_batch_counts(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish(*["ep_1"] * 12)
    claimed = await store.claim(12)
    results = [build_finished(each, Transition.EXHAUST) for each in claimed[:9]]
    results += [build_finished(claimed[9]), build_finished(claimed[10], Transition.EXHAUST)]
    await store.queue.finish(results, NOW)
    assert (await store.lane("ep_1")).failure_streak == 1


async def test_interrupted_attempts_and_lost_leases_do_not_count(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish(*["ep_1"] * 20)
    await fail(store, await store.claim(20), outcome=AttemptOutcome.INTERRUPTED)
    assert len(await store.claim()) == 20
    assert await store.queue.recover_lost(NOW + LEASE) == 20
    assert await store.lane("ep_1") == Lane()


async def test_results_that_do_not_count_tell_nothing(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish(*["ep_1"] * 12)
    late = await store.claim(12)
    await store.queue.recover_lost(NOW + LEASE)
    results = [build_finished(each, Transition.EXHAUST) for each in late]
    assert not any(await store.queue.finish(results, NOW + LEASE))
    assert await store.lane("ep_1") == Lane()


async def test_it_is_each_endpoints_own(store: Store) -> None:
    await open_circuit(store)
    await store.add_endpoints("ep_2")
    [healthy] = await store.publish("ep_2")
    assert [each.id for each in await store.claim()] == [healthy]
    assert await store.lane("ep_2") == Lane()


async def test_deliveries_wait_without_spending_attempts(store: Store) -> None:
    ids = await open_circuit(store, deliveries=15)
    probe_at = await find_probe_at(store)
    assert await store.claim(now=probe_at - SECOND) == []
    waiting = await store.delivery(ids[-1])
    assert (waiting.state, waiting.attempt_count, waiting.lease_until) == (DeliveryState.PENDING, 0, None)


async def test_the_first_probe_is_due_within_its_jitter(store: Store) -> None:
    await open_circuit(store)
    assert 0.8 * FIRST_PROBE_AFTER <= await find_probe_at(store) - NOW <= 1.2 * FIRST_PROBE_AFTER


async def test_exactly_one_probe_goes_over_all_workers(store: Store) -> None:
    await open_circuit(store)
    workers = [store, await store.second(), await store.second()]
    claims = await asyncio.gather(*(worker.claim(now=PROBED) for worker in workers))
    # Whoever met the others at it comes back.
    claims += [await worker.claim(now=PROBED + SECOND) for worker in workers]
    assert sum(map(len, claims)) == 1


async def test_what_was_in_flight_when_it_opened_is_awaited_before_the_probe(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish(*["ep_1"] * 12)
    claimed = await store.claim(12)
    await fail(store, claimed[:10])
    assert await store.claim(now=PROBED) == []
    await fail(store, claimed[10:], PROBED, started_at=NOW)
    assert len(await store.claim(now=PROBED)) == 1


async def test_late_failures_from_before_do_not_move_the_probe(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish(*["ep_1"] * 12)
    claimed = await store.claim(12)
    await fail(store, claimed[:10])
    probe_at = await find_probe_at(store)
    await fail(store, claimed[10:], NOW + 5 * SECOND, started_at=NOW)
    lane = await store.lane("ep_1")
    assert (lane.failure_streak, lane.probe_at, lane.probes) == (12, probe_at, 0)


async def test_a_probe_that_fails_doubles_the_wait_up_to_the_longest(store: Store) -> None:
    await open_circuit(store)
    for doubled in (20, 40, 80, 160, 300, 300):
        now = await find_probe_at(store)
        [probe] = await store.claim(now=now)
        await fail(store, [probe], now)
        wait = (await find_probe_at(store) - now).total_seconds()
        assert 0.8 * doubled <= wait <= 1.2 * doubled
        assert await store.claim(now=now) == []
    assert LONGEST_PROBE_AFTER.total_seconds() == 300


async def test_a_probe_whose_worker_dies_is_followed_by_another(store: Store) -> None:
    await open_circuit(store)
    await store.claim_one(now=PROBED)
    lost = PROBED + LEASE
    assert await store.claim(now=lost) == []
    assert await store.queue.recover_lost(lost) == 1
    assert len(await store.claim(now=lost)) == 1


async def test_a_probe_that_is_given_back_is_followed_by_another(store: Store) -> None:
    await open_circuit(store)
    await store.queue.give_back([await store.claim_one(now=PROBED)])
    assert len(await store.claim(now=PROBED)) == 1


async def test_a_probe_that_succeeds_closes_it_and_all_goes_on(store: Store) -> None:
    await open_circuit(store, deliveries=15)
    await succeed(store, await store.claim_one(now=PROBED), PROBED)
    assert await store.lane("ep_1") == Lane()
    # Known at once where the probe was sent from.
    assert len(await store.claim_known(now=PROBED)) == 14


async def test_a_late_success_from_before_closes_it(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish(*["ep_1"] * 12)
    claimed = await store.claim(11)
    await fail(store, claimed[:10])
    await succeed(store, claimed[10], NOW + SECOND)
    assert len(await store.claim(now=NOW + SECOND)) == 11


async def test_a_person_who_retries_has_it_tried_at_once(store: Store) -> None:
    ids = await open_circuit(store)
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.retry(ids[0], NOW + SECOND)
    probe = await store.claim_one(now=NOW + SECOND)
    await succeed(store, probe, NOW + SECOND)
    assert len(await store.claim(now=NOW + SECOND)) == OPENS_AT - 1


async def test_a_person_who_recovers_has_it_tried_at_once_by_one(store: Store) -> None:
    await open_circuit(store)
    async with store.ledger.transaction() as tx:
        assert await tx.deliveries.recover("ep_1", NOW, NOW + SECOND) == OPENS_AT
    assert len(await store.claim(now=NOW + SECOND)) == 1
    assert await store.claim(now=PROBED) == []


async def test_an_open_circuit_is_tried_now_when_asked(store: Store) -> None:
    await open_circuit(store)
    async with store.ledger.transaction() as tx:
        await tx.endpoints.try_now("ep_1", NOW + SECOND)
    assert len(await store.claim(now=NOW + SECOND)) == 1


async def test_a_person_who_retries_leaves_a_closed_circuit_as_it_is(store: Store) -> None:
    await store.add_endpoints("ep_1")
    [delivery_id] = await store.publish("ep_1")
    await fail(store, await store.claim(1))
    before = await store.lane("ep_1")
    async with store.ledger.transaction() as tx:
        await tx.deliveries.retry(delivery_id, NOW + SECOND)
        await tx.endpoints.try_now("ep_1", NOW + SECOND)
    assert await store.lane("ep_1") == before


async def test_forgetting_its_failures_closes_it(store: Store) -> None:
    await open_circuit(store)
    async with store.ledger.transaction() as tx:
        await tx.endpoints.close_circuit("ep_1")
    assert await store.lane("ep_1") == Lane()
    assert len(await store.claim()) == OPENS_AT


async def fail_for_days(
    store: Store, failures: int = OPENS_AT, *, then: timedelta = DISABLED_AFTER, tried_for: timedelta = TRIED_FOR
) -> list[str]:
    """Fail so often until `tried_for` before the end, the first time at NOW, and once at the end, `then` after NOW."""
    ids = await store.publish(*["ep_1"] * (failures + 1))
    await fail(store, await store.claim(1))
    end = NOW + then
    await fail(store, await store.claim(failures - 1, now=end - tried_for), end - tried_for)
    await fail(store, await store.claim(1, now=end), end)
    return ids


async def test_five_days_of_nothing_but_failure_and_one_of_trying_disable_it_and_hold_its_deliveries(
    store: Store,
) -> None:
    await store.add_endpoints("ep_1")
    ids = await fail_for_days(store)
    endpoint = await store.endpoint("ep_1")
    assert endpoint.status is EndpointStatus.DISABLED
    assert endpoint.status_reason is not None
    assert "2026-03-01T12:00:00Z" in endpoint.status_reason
    assert "500 Internal Server Error" in endpoint.status_reason
    assert endpoint.updated_at == NOW + DISABLED_AFTER
    assert await store.settle("ep_1") == len(ids)
    assert set(await store.states(*ids)) == {DeliveryState.HELD}
    assert await store.claim(now=NOW + WEEK) == []


@pytest.mark.parametrize(
    ("failures", "then", "tried_for"),
    [
        (OPENS_AT - 2, WEEK, TRIED_FOR),
        (OPENS_AT, DISABLED_AFTER - SECOND, TRIED_FOR),
        (OPENS_AT, WEEK, TRIED_FOR - SECOND),
    ],
    ids=["too few", "too soon", "too little tried"],
)
async def test_less_than_that_does_not(store: Store, failures: int, then: timedelta, tried_for: timedelta) -> None:
    await store.add_endpoints("ep_1")
    await fail_for_days(store, failures, then=then, tried_for=tried_for)
    assert (await store.endpoint("ep_1")).status is EndpointStatus.ACTIVE


async def test_a_success_within_them_keeps_it(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish(*["ep_1"] * 20)
    await fail(store, await store.claim(9))
    await succeed(store, (await store.claim(1))[0])
    end = NOW + WEEK
    await fail(store, await store.claim(19, now=end - TRIED_FOR), end - TRIED_FOR)
    await fail(store, await store.claim(1, now=end), end)
    assert (await store.lane("ep_1")).opened_at == end - TRIED_FOR
    assert (await store.endpoint("ep_1")).status is EndpointStatus.ACTIVE


async def test_a_success_in_the_last_batch_keeps_it(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish(*["ep_1"] * 12)
    await fail(store, await store.claim(1))
    end = NOW + WEEK
    *failing, one, two = await store.claim(12, now=end - TRIED_FOR)
    await fail(store, failing, end - TRIED_FOR)
    assert (await store.lane("ep_1")).opened_at == end - TRIED_FOR
    results = [
        build_finished(one, Transition.EXHAUST, started_at=end),
        build_finished(two, Transition.SUCCEED, started_at=end),
    ]
    assert all(await store.queue.finish(results, end))
    assert (await store.endpoint("ep_1")).status is EndpointStatus.ACTIVE
    assert await store.lane("ep_1") == Lane()


async def test_one_that_a_person_paused_meanwhile_stays_paused(store: Store) -> None:
    await store.add_endpoints("ep_1")
    await store.publish(*["ep_1"] * OPENS_AT)
    await fail(store, await store.claim(1))
    end = NOW + WEEK
    *failing, last = await store.claim(now=end - TRIED_FOR)
    await fail(store, failing, end - TRIED_FOR)
    await store.set_status("ep_1", EndpointStatus.PAUSED)
    await fail(store, [last], end)
    assert decide_disabling(await store.lane("ep_1"), end)
    assert (await store.endpoint("ep_1")).status is EndpointStatus.PAUSED


async def test_one_that_was_disabled_goes_on_when_it_is_resumed(store: Store) -> None:
    await store.add_endpoints("ep_1")
    ids = await fail_for_days(store)
    await store.set_status("ep_1", EndpointStatus.ACTIVE)
    async with store.ledger.transaction() as tx:
        await tx.endpoints.close_circuit("ep_1")
    end = NOW + DISABLED_AFTER
    assert {each.id for each in await store.claim(now=end)} == set(ids)
    assert await store.lane("ep_1") == Lane()


async def test_what_is_accepted_after_it_was_disabled_is_held(store: Store) -> None:
    other = await store.second()
    await store.add_endpoints("ep_1")
    await other.accept("ep_1", now=NOW + WEEK)
    await fail_for_days(store)
    [delivery_id] = await other.accept("ep_1", now=NOW + WEEK)
    assert await other.states(delivery_id) == [DeliveryState.HELD]


async def test_a_survey_does_not_bring_it_before_its_probe(sql_store: Store) -> None:
    store = sql_store
    await open_circuit(store)
    await store.add_endpoints("ep_2")
    await store.publish("ep_2")
    other = await store.second()
    probe_at = await find_probe_at(store)

    async def find_candidates(now: datetime) -> set[str]:
        asked: set[str] = set()

        def room(endpoint_id: str) -> int:
            asked.add(endpoint_id)
            return 0

        other.queue.wake()
        await other.queue.claim(100, room=room, now=now, lease=LEASE)
        return asked

    assert await find_candidates(probe_at - SECOND) == {"ep_2"}
    assert await find_candidates(probe_at) == {"ep_1", "ep_2"}


async def test_lanes_are_found_for_those_asked_for(store: Store) -> None:
    await open_circuit(store)
    await store.add_endpoints("ep_2", "ep_3")
    async with store.ledger.snapshot() as tx:
        found = await tx.endpoints.lanes(["ep_1", "ep_2", "ep_none"])
    assert found.keys() == {"ep_1", "ep_2"}
    assert found["ep_2"] == Lane()
