"""A store whose queue has JetStream around it, and what tests look up in the stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count

import nats
from nats.js import JetStreamContext

from carehook.bootstrap import build_ledger, build_queue
from carehook.ledger.database import Database, parse_database_url
from carehook.ledger.jetstream_servers import build_tls, parse_queue_url
from carehook.ledger.jetstream_stream import Stream
from carehook.ledger.queue_jetstream import QueueJetStream
from tests.conformance.store import NOW, Store

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
        client = await nats.connect(self.queue_url.split(","), allow_reconnect=False)
        try:
            yield client.jetstream()
        finally:
            await client.close()

    async def count_left(self, kind: str) -> int:
        """How many messages of a kind the stream holds: announcements that are "due", or for "later"."""
        async with self.look() as jetstream:
            found = await jetstream.stream_info(Stream(self.installation).name, subjects_filter=">")
        subjects: dict[str, int] = found.state.subjects or {}
        return sum(count for subject, count in subjects.items() if subject.split(".")[2] == kind)

    async def until_left(self, count: int, kind: str = "due") -> None:
        """Return when the stream holds as many messages of a kind."""
        async with asyncio.timeout(20):
            while True:
                if await self.count_left(kind) == count:
                    return
                await asyncio.sleep(0.02)
