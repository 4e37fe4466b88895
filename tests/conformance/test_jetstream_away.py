"""While NATS is away, or loses what it had, deliveries go on: by the database alone, each of them once."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from carehook.ledger.jetstream.stream import Stream
from tests.conformance.jetstream import (
    IN_TIME,
    Cluster,
    claim,
    claim_all,
    name_installation,
    start_listening,
    until_delivered,
    until_logged,
    utc_now,
    work,
)
from tests.servers.nats import NatsServers


@pytest.fixture
def own_server() -> Iterator[NatsServers]:
    with NatsServers() as server:
        yield server


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
            await until_logged(logs, "jetstream_lost", 2)
            assert await claim(worker) == []
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
        succeeded, published = await deliver_while(postgresql_url, servers, kill_all)
    assert succeeded == published


async def test_nodes_of_a_cluster_killed_one_by_one_under_load_lose_and_double_nothing(postgresql_url: str) -> None:
    with NatsServers(3) as servers:
        succeeded, published = await deliver_while(postgresql_url, servers, kill_one_by_one)
    assert succeeded == published


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
) -> tuple[Counter[str], Counter[str]]:
    """Publish and deliver while something happens to the servers: what succeeded, how often, and what was published."""
    async with contextlib.AsyncExitStack() as opened:
        cluster = Cluster(postgresql_url, servers.url, name_installation(), opened)
        api, *workers = [await cluster.join(clock=utc_now) for _ in range(3)]
        async with cluster.look() as jetstream:
            found = await jetstream.stream_info(Stream(cluster.installation).name)
        assert found.config.num_replicas == 3
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
        return sum([await each for each in working], Counter()), Counter(ids)
