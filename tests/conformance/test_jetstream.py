"""What JetStream adds to the SQL queue: workers hear of what others made due, share it, and lose nothing without it."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, MutableMapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from carehook.ledger.jetstream_stream import Stream
from carehook.ledger.records import ClaimedDelivery
from carehook.ledger.states import DeliveryState, EndpointStatus, Ordering, Transition
from tests.conformance.jetstream import Cluster, name_installation
from tests.conformance.store import (
    LEASE,
    NOW,
    SECOND,
    Store,
    build_delivery,
    build_endpoint,
    build_event,
    build_finished,
)
from tests.servers.nats import NatsServers

IN_TIME = 20
"""Seconds after which a test has failed: more than a sweep takes, less than it takes JetStream to give up a worker."""

LONG = timedelta(hours=1)


@pytest.fixture
async def cluster(postgresql_url: str, nats_server: NatsServers) -> AsyncIterator[Cluster]:
    """A database and a NATS server for any number of processes."""
    async with contextlib.AsyncExitStack() as opened:
        yield Cluster(postgresql_url, nats_server.url, name_installation(), opened)


@pytest.fixture
def own_server() -> Iterator[NatsServers]:
    with NatsServers() as server:
        yield server


def utc_now() -> datetime:
    return datetime.now(UTC)


async def claim(worker: Store, now: datetime = NOW, limit: int = 100) -> Sequence[ClaimedDelivery]:
    """Claim what the worker knows of, without a look at the store."""
    return await worker.queue.claim(limit, room=lambda _: limit, now=now, lease=LEASE)


async def claim_all(worker: Store, count: int, now: Callable[[], datetime] = lambda: NOW) -> list[ClaimedDelivery]:
    """Claim as a worker does until it has `count`."""
    claimed: list[ClaimedDelivery] = []
    async with asyncio.timeout(IN_TIME):
        while True:
            claimed += await claim(worker, now())
            if len(claimed) >= count:
                return claimed
            await worker.queue.wait(at_most=LONG)


async def start_listening(worker: Store) -> None:
    """Make the first claim, at which a worker surveys the store and begins to listen."""
    assert await claim(worker) == []


async def work(worker: Store) -> Counter[str]:
    """Deliver all that is due until cancelled; how often each delivery's success was recorded."""
    recorded: Counter[str] = Counter()
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            claimed = await claim(worker, utc_now(), 20)
            counted = await worker.queue.finish([build_finished(each) for each in claimed], utc_now())
            recorded.update(each.id for each, is_counted in zip(claimed, counted, strict=True) if is_counted)
            if not claimed:
                await worker.queue.wait(at_most=timedelta(seconds=0.5))
    return recorded


async def until_delivered(store: Store) -> None:
    """Return when nothing waits and nothing is in flight."""
    async with asyncio.timeout(3 * IN_TIME):
        while True:
            async with store.ledger.snapshot() as tx:
                backlog = await tx.deliveries.backlog()
            if not backlog.waiting + backlog.in_flight:
                return
            await asyncio.sleep(0.05)


async def until_logged(logs: Sequence[MutableMapping[str, Any]], event: str, times: int) -> None:
    """Return when there are as many lines about an event."""
    async with asyncio.timeout(IN_TIME):
        while True:
            if sum(line["event"] == event for line in logs) >= times:
                return
            await asyncio.sleep(0.02)


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
    await api.publish("ep_1", "ep_2", "ep_2")
    working = asyncio.create_task(work(worker))
    await until_delivered(api)
    await cluster.until_left(0)
    working.cancel()


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
    await start_listening(second)
    await first.queue.give_back([claimed])
    assert [each.id for each in await claim_all(second, 1)] == [claimed.id]


@pytest.mark.parametrize("endpoint", [{"max_in_flight": 1}, {"ordering": Ordering.PATIENT}])
async def test_a_result_that_another_worker_waits_for_is_announced(
    cluster: Cluster, endpoint: dict[str, object]
) -> None:
    first, second = await cluster.join(), await cluster.join()
    await first.add_organization()
    events = [build_event(), build_event()]
    waiting = [replace(build_delivery(event, "ep_1"), order_key="patient") for event in events]
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
    await worker.add_endpoints("ep_1", "ep_2")
    await worker.publish(*["ep_1"] * 10, "ep_2")
    claimed = await claim(worker)
    due_at = utc_now().replace(microsecond=0) + timedelta(hours=1)
    later = [timedelta(milliseconds=90 * number) for number in range(1, 12)]
    finished = [
        build_finished(each, Transition.RESCHEDULE, due_at=due_at + wait)
        for each, wait in zip(claimed, later, strict=True)
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


# ------------------------------------------------------------------------------------ while NATS is away


async def test_without_nats_workers_ask_the_database_and_listen_again_when_it_is_back(
    postgresql_url: str, own_server: NatsServers
) -> None:
    async with contextlib.AsyncExitStack() as opened:
        cluster = Cluster(postgresql_url, own_server.url, name_installation(), opened)
        api, worker = await cluster.join(), await cluster.join()
        await api.add_endpoints("ep_1")
        await start_listening(worker)
        with capture_logs() as logs:
            own_server.kill()
            [delivery_id] = await api.publish("ep_1")
            async with asyncio.timeout(IN_TIME):
                while not (claimed := await claim(worker)):
                    await worker.queue.wait(at_most=timedelta(seconds=0.5))
            assert [each.id for each in claimed] == [delivery_id]
            await asyncio.sleep(2)
            await own_server.restart()
            await until_logged(logs, "jetstream_back", 2)
        assert Counter(line["event"] for line in logs) == {"jetstream_lost": 2, "jetstream_back": 2}
        await claim(worker)
        [delivery_id] = await api.publish("ep_1")
        assert [each.id for each in await claim_all(worker, 1)] == [delivery_id]


async def test_a_stream_that_was_lost_with_its_disk_is_made_anew(postgresql_url: str, own_server: NatsServers) -> None:
    async with contextlib.AsyncExitStack() as opened:
        cluster = Cluster(postgresql_url, own_server.url, name_installation(), opened)
        api, worker = await cluster.join(), await cluster.join(clock=utc_now)
        await api.add_endpoints("ep_1")
        await start_listening(worker)
        working = asyncio.create_task(work(worker))
        ids = await api.publish("ep_1")
        own_server.kill()
        ids += await api.publish("ep_1")
        own_server.forget()
        await own_server.restart()
        ids += await api.publish("ep_1")
        await until_delivered(api)
        working.cancel()
        assert await working == Counter(ids)


async def test_all_nodes_of_a_cluster_killed_under_load_lose_and_double_nothing(postgresql_url: str) -> None:
    with NatsServers(3) as servers:
        await deliver_while(postgresql_url, servers, kill_all)


async def test_nodes_of_a_cluster_killed_one_by_one_under_load_lose_and_double_nothing(postgresql_url: str) -> None:
    with NatsServers(3) as servers:
        await deliver_while(postgresql_url, servers, kill_one_by_one)


async def kill_all(servers: NatsServers) -> None:
    servers.kill()
    await asyncio.sleep(2)
    await servers.restart()


async def kill_one_by_one(servers: NatsServers) -> None:
    for number in range(3):
        servers.kill(number)
        await asyncio.sleep(1)
        await servers.restart()


async def deliver_while(
    postgresql_url: str, servers: NatsServers, disturb: Callable[[NatsServers], Coroutine[None, None, None]]
) -> None:
    """Publish and deliver while something happens to the servers: each delivery succeeds once."""
    async with contextlib.AsyncExitStack() as opened:
        cluster = Cluster(postgresql_url, servers.url, name_installation(), opened)
        api, *workers = [await cluster.join(clock=utc_now) for _ in range(3)]
        names = [f"ep_{number}" for number in range(5)]
        await api.add_endpoints(*names)
        working = [asyncio.create_task(work(each)) for each in workers]
        disturbing = asyncio.create_task(disturb(servers))
        ids: list[str] = []
        while not disturbing.done():
            ids += await api.publish(*names)
            await asyncio.sleep(0.01)
        await disturbing
        ids += await api.publish(*names)
        await until_delivered(api)
        for each in working:
            each.cancel()
        assert sum([await each for each in working], Counter()) == Counter(ids)
        async with cluster.look() as jetstream:
            found = await jetstream.stream_info(Stream(cluster.installation).name)
        assert found.config.num_replicas == 3
