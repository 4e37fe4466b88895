"""What JetStream adds: workers hear of what others made due, and share it; a sweep finds what nobody told."""

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from carehook.ledger.jetstream.stream import Stream
from carehook.ledger.sql.queue import QueueSql
from carehook.ledger.states import DeliveryState, EndpointStatus, Ordering, Transition
from tests.conformance.jetstream import (
    Cluster,
    claim,
    claim_all,
    start_listening,
    until_delivered,
    until_logged,
    utc_now,
    work,
)
from tests.conformance.store import NOW, SECOND, Store, build_delivery, build_endpoint, build_event, build_finished

# ------------------------------------------------------------------------------------ what is announced


async def test_a_worker_hears_of_what_another_process_accepted(cluster: Cluster) -> None:
    api, worker = await cluster.join(), await cluster.join()
    await api.add_endpoints("ep_1")
    await start_listening(worker)
    [delivery_id] = await api.publish("ep_1")
    assert [each.id for each in await claim_all(worker, 1)] == [delivery_id]


async def test_what_was_heard_and_claimed_is_left_in_no_stream(cluster: Cluster) -> None:
    api, worker = await cluster.join(), await cluster.join()
    await api.add_endpoints("ep_1", "ep_2")
    await start_listening(worker)
    ids = await api.publish("ep_1", "ep_2", "ep_2")
    working = asyncio.create_task(work(worker))
    await until_delivered(api)
    await cluster.until_left(0)
    working.cancel()
    assert await working == Counter(ids)


async def test_an_endpoints_backlog_is_announced_once(cluster: Cluster) -> None:
    api = await cluster.join()
    await api.add_endpoints("ep_1", "ep_2")
    for _ in range(5):
        await api.publish(*["ep_1"] * 20, "ep_2")
    await cluster.until_left(2)
    await asyncio.sleep(0.1)
    assert await cluster.count_left("due") == 2


async def test_announcements_hold_the_endpoints_id_and_nothing_else(cluster: Cluster) -> None:
    api = await cluster.join()
    await api.add_endpoints("ep_1")
    await api.publish("ep_1")
    await cluster.until_left(1)
    async with cluster.look() as jetstream:
        message = await jetstream.get_msg(f"carehook-{cluster.installation}", seq=1)
    assert (message.subject, message.data) == (f"carehook.{cluster.installation}.due.ep_1", b"ep_1")
    assert message.headers is None


async def test_announcements_for_which_nothing_is_due_do_no_harm(cluster: Cluster) -> None:
    api, worker, other = await cluster.join(), await cluster.join(), await cluster.join()
    await api.add_endpoints("ep_1", "ep_2")
    await start_listening(worker)
    await start_listening(other)
    ids = await api.publish(*["ep_1"] * 10)
    for _ in range(20):
        api.queue.announce(["ep_1", "ep_2", "ep_none"])
        await asyncio.sleep(0.005)
    found = await claim_all(worker, 10)
    assert sorted(each.id for each in found) == sorted(ids)
    assert await claim(other) == []


async def test_what_is_given_back_is_announced(cluster: Cluster) -> None:
    first, second = await cluster.join(), await cluster.join()
    await first.add_endpoints("ep_1")
    await first.publish("ep_1")
    [claimed] = await claim(first)
    while await cluster.count_left("due"):
        await claim(first)
    await start_listening(second)
    await first.queue.give_back([claimed])
    assert [each.id for each in await claim_all(second, 1)] == [claimed.id]


@pytest.mark.parametrize(
    ("endpoint", "order_key"), [({"max_in_flight": 1}, None), ({"ordering": Ordering.PATIENT}, "patient")]
)
async def test_a_result_that_another_worker_waits_for_is_announced(
    cluster: Cluster, endpoint: dict[str, object], order_key: str | None
) -> None:
    first, second = await cluster.join(), await cluster.join()
    await first.add_organization()
    events = [build_event(), build_event()]
    waiting = [replace(build_delivery(event, "ep_1"), order_key=order_key) for event in events]
    async with first.ledger.transaction() as tx:
        await tx.endpoints.add(build_endpoint("ep_1", **endpoint))
        await tx.events.add(events)
        await tx.deliveries.add(waiting)
    [claimed] = await claim(first, limit=1)
    assert await claim(second) == []
    second_claim = asyncio.create_task(claim_all(second, 1))
    assert await first.finish(claimed)
    assert {claimed.id, *(each.id for each in await second_claim)} == {each.id for each in waiting}


async def test_a_resumed_endpoint_is_announced(cluster: Cluster) -> None:
    api, worker = await cluster.join(), await cluster.join()
    await api.add_endpoints("ep_1", status=EndpointStatus.PAUSED)
    [delivery_id] = await api.publish("ep_1", state=DeliveryState.HELD)
    await start_listening(worker)
    await api.set_status("ep_1", EndpointStatus.ACTIVE)
    assert [each.id for each in await claim_all(worker, 1)] == [delivery_id]


# ------------------------------------------------------------------------------------ what falls due later


async def test_a_retry_is_heard_of_when_it_falls_due_though_who_scheduled_it_is_gone(cluster: Cluster) -> None:
    first, second = await cluster.join(), await cluster.join()
    await first.add_endpoints("ep_1")
    await first.publish("ep_1")
    [claimed] = await claim(first)
    await start_listening(second)
    due_at = utc_now() + SECOND
    assert await first.finish(claimed, Transition.RESCHEDULE, due_at=due_at)
    await first.leave()
    [again] = await claim_all(second, 1, utc_now)
    assert (again.id, again.attempt_count) == (claimed.id, 1)
    assert utc_now() >= due_at


async def test_retries_of_an_endpoint_within_a_second_are_one_schedule(cluster: Cluster) -> None:
    worker = await cluster.join()
    await worker.add_endpoints("ep_1")
    await worker.publish(*["ep_1"] * 10)
    in_an_hour = utc_now().replace(microsecond=0) + timedelta(hours=1)
    due_at = [in_an_hour + timedelta(milliseconds=100 * number) for number in range(1, 10)] + [in_an_hour + 5 * SECOND]
    finished = [
        build_finished(each, Transition.RESCHEDULE, due_at=at)
        for each, at in zip(await claim(worker), due_at, strict=True)
    ]
    assert all(await worker.queue.finish(finished, NOW))
    await cluster.until_left(2, "later")


# ------------------------------------------------------------------------------------ what nobody was told of


async def test_a_purged_stream_is_made_up_for_by_a_sweep(cluster: Cluster) -> None:
    first, second = await cluster.join(), await cluster.join(clock=utc_now)
    await first.add_endpoints("ep_1")
    await first.publish("ep_1")
    [claimed] = await claim(first)
    await start_listening(second)
    assert await first.finish(claimed, Transition.RESCHEDULE, due_at=utc_now() + SECOND)
    await first.leave()
    async with cluster.look() as jetstream:
        await jetstream.purge_stream(Stream(cluster.installation).name)
    [again] = await claim_all(second, 1, utc_now)
    assert again.id == claimed.id


async def test_what_a_process_did_not_live_to_announce_is_found_by_a_sweep(cluster: Cluster) -> None:
    worker = await cluster.join(clock=utc_now)
    await worker.add_endpoints("ep_1")
    await start_listening(worker)
    # As an API that was killed after its commit: it told nobody.
    silent = await Store.open(cluster.database_url, cluster.opened)
    [delivery_id] = await silent.publish("ep_1")
    assert [each.id for each in await claim_all(worker, 1)] == [delivery_id]


async def test_a_sweep_that_fails_stops_nobody_from_listening(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, worker = await cluster.join(), await cluster.join()
    await api.add_endpoints("ep_1")

    async def fail(_: QueueSql) -> None:
        raise RuntimeError("a bug")

    with capture_logs() as logs:
        await start_listening(worker)
        monkeypatch.setattr(QueueSql, "survey", fail)
        await until_logged(logs, "announcements_not_heard", 1)
    [delivery_id] = await api.publish("ep_1")
    assert [each.id for each in await claim_all(worker, 1)] == [delivery_id]


async def test_of_the_orders_of_an_occasion_to_sweep_one_counts(cluster: Cluster) -> None:
    await cluster.join()
    async with cluster.look() as jetstream:
        for occasion, is_doubled in (("1", None), ("1", True), ("2", None), ("1", True)):
            order = Stream(cluster.installation).order_sweep(occasion)
            assert (await jetstream.publish(order.subject, headers=order.headers)).duplicate == is_doubled


async def test_what_a_worker_with_its_hands_full_heard_goes_to_another(cluster: Cluster) -> None:
    api, full, idle = await cluster.join(), await cluster.join(), await cluster.join()
    names = [f"ep_{number}" for number in range(20)]
    await api.add_endpoints(*names)
    await start_listening(full)
    await start_listening(idle)
    ids = await api.publish(*names)
    assert sorted(each.id for each in await claim_all(idle, 20)) == sorted(ids)


async def test_two_workers_share_what_there_is(cluster: Cluster) -> None:
    api, first, second = await cluster.join(), await cluster.join(), await cluster.join()
    names = [f"ep_{number}" for number in range(20)]
    await api.add_endpoints(*names)
    await start_listening(first)
    await start_listening(second)
    working = [asyncio.create_task(work(first)), asyncio.create_task(work(second))]
    ids = [each for _ in range(10) for each in await api.publish(*names)]
    await until_delivered(api)
    for each in working:
        each.cancel()
    recorded = [await each for each in working]
    assert sum(recorded, Counter()) == Counter(ids)
    assert all(recorded)
