"""Processes that share a database and JetStream, and what tests have them do."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from nats.js import JetStreamContext

from carehook.bootstrap import build_ledger, build_queue
from carehook.ledger.connections.database import Database, parse_database_url
from carehook.ledger.jetstream.queue import QueueJetStream
from carehook.ledger.jetstream.servers import build_tls, parse_queue_url
from carehook.ledger.jetstream.stream import Stream
from carehook.ledger.records import ClaimedDelivery
from tests.conformance.store import LEASE, NOW, Store, build_finished
from tests.servers.clients import connect_to_nats

IN_TIME = 20
"""Seconds after which a test has failed: more than a sweep takes, less than it takes JetStream to give up a worker."""

LONG = timedelta(hours=1)

_installations = (f"test{number}" for number in count(1))


def name_installation() -> str:
    """A name whose stream no other test of this process uses."""
    return next(_installations)


def not_yet_overdue() -> datetime:
    """A clock by which nothing of the tests is overdue: sweeps find nothing, so what is heard was announced."""
    return NOW


@dataclass
class Process(Store):
    """The store as one process sees it, with JetStream around its queue."""

    queue: QueueJetStream
    cluster: Cluster = field(repr=False)

    async def second(self) -> Process:
        """Another process."""
        return await self.cluster.join()

    async def leave(self) -> None:
        """Disconnect, as at the end of the process."""
        await self.queue.close()


@dataclass
class Cluster:
    """A database and NATS servers, for as many processes as a test wants."""

    database_url: str
    queue_url: str
    installation: str
    opened: contextlib.AsyncExitStack

    async def join(self, clock: Callable[[], datetime] = not_yet_overdue) -> Process:
        """A process of its own."""
        database = Database(parse_database_url(self.database_url))
        self.opened.push_async_callback(database.close)
        within = build_queue(database, notifying=False)
        queue = QueueJetStream(within, parse_queue_url(self.queue_url), build_tls(None), self.installation, clock)
        self.opened.push_async_callback(queue.close)
        await queue.open()
        return Process(build_ledger(database, queue.announce), queue, database, self.opened, self)

    @contextlib.asynccontextmanager
    async def look(self) -> AsyncIterator[JetStreamContext]:
        """JetStream as an operator sees it."""
        async with connect_to_nats(self.queue_url) as client:
            yield client.jetstream()

    async def count_left(self, kind: str) -> int:
        """How many messages of a kind the stream holds: announcements that are "due", or for "later"."""
        async with self.look() as jetstream:
            found = await jetstream.stream_info(Stream(self.installation).name, subjects_filter=">")
        subjects: dict[str, int] = found.state.subjects or {}
        return sum(count for subject, count in subjects.items() if subject.split(".")[2] == kind)

    async def until_left(self, count: int, kind: str = "due") -> None:
        """Return when the stream holds as many messages of a kind."""
        async with asyncio.timeout(IN_TIME):
            while True:
                if await self.count_left(kind) == count:
                    return
                await asyncio.sleep(0.02)


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
