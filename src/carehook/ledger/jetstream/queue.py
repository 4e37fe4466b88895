"""The queue whose workers tell each other by NATS JetStream what is due.

Laws:
- The database is the only truth: what is due, leases, tokens, limits and order are all the SQL queue's within this one.
  JetStream carries announcements, each of them an endpoint's id, heard by one worker of all.
- An announcement that is lost, doubled or late costs time and nothing else. What nobody was told of is found by a
  sweep, which one of the workers makes every `SWEEP_SECONDS`, and announced anew.
- Nothing waits for JetStream, neither who accepts nor who claims. While it is away each worker surveys the database, as
  it would without it.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final, Protocol

from carehook.clock import Clock
from carehook.ledger.jetstream.announcer import Announcer
from carehook.ledger.jetstream.link import Link
from carehook.ledger.jetstream.listener import Listener
from carehook.ledger.jetstream.servers import Server
from carehook.ledger.jetstream.session import Session
from carehook.ledger.jetstream.stream import Stream
from carehook.ledger.port import LedgerUnavailable, Queue
from carehook.ledger.records import ClaimedDelivery, Endpoint, FinishedAttempt
from carehook.ledger.states import Ordering

SURVEY_SECONDS: Final = 30.0
"""How often each worker surveys the store for itself while JetStream is there; should all else fail silently."""

OVERDUE: Final = timedelta(seconds=1)
"""What has been due for less is being announced."""


class SurveyedQueue(Queue, Protocol):
    """A queue that surveys its store every so many seconds, and when it is asked to."""

    survey_every: float

    async def survey(self) -> Sequence[tuple[str, datetime]]:
        """Each endpoint for which something waits, with the instant it is to be tried, the longest due first."""
        ...


class QueueJetStream:
    """See `port.Queue`. What it was told before `open` is found by a sweep. `announce` is the ledger's `on_due`."""

    def __init__(
        self, queue: SurveyedQueue, servers: Sequence[Server], tls: ssl.SSLContext, installation: str, clock: Clock
    ) -> None:
        self._queue = queue
        self._clock = clock
        self._stream = Stream(installation)
        self._link = Link(lambda: Session.open(servers, tls, self._stream))
        self._announcer = Announcer(self._link)
        self._listener = Listener(self._link, self._stream, hear=queue.wake, sweep=self._sweep)
        self._polling = queue.survey_every
        # Endpoints of which one worker's result may be what another worker waits for.
        self._shared: set[str] = set()

    async def open(self) -> None:
        """Connect to one of the servers, and make the stream where there is none. Raises `JetStreamUnavailable`."""
        await self._link.open(self._adapt)

    async def close(self) -> None:
        """Hand over what was heard, tell what is left to tell, and disconnect."""
        await self._listener.close()
        await self._announcer.close()
        await self._link.close()

    def announce(self, endpoint_ids: Collection[str]) -> None:
        """Say to all workers, this process's first, that these endpoints may have something due."""
        self._queue.wake(endpoint_ids)
        self._announcer.announce(map(self._stream.announce, endpoint_ids))

    def wake(self, endpoint_ids: Collection[str] = ()) -> None:
        """Say to this process's worker that something may be due, or that there is room for it."""
        self._queue.wake(endpoint_ids)

    async def wait(self, *, at_most: timedelta) -> None:
        """Wait for `wake`, for an announcement, or for what falls due."""
        await self._queue.wait(at_most=at_most)

    async def claim(
        self, limit: int, *, room: Callable[[str], int], now: datetime, lease: timedelta
    ) -> Sequence[ClaimedDelivery]:
        """Lease due deliveries, of what this worker knows of and of what it has heard."""
        self._listener.start()
        heard = self._listener.take_held()
        claimed = await self._queue.claim(limit, room=room, now=now, lease=lease)
        await self._listener.settle(heard)
        for each in claimed:
            self._note_endpoint(each.endpoint)
        return claimed

    async def finish(self, finished: Sequence[FinishedAttempt], now: datetime) -> Sequence[bool]:
        """Record attempts, and tell what others may have waited for and what falls due later."""
        counted = await self._queue.finish(finished, now)
        told = [
            self._stream.announce(each) for each in self._shared.intersection(each.endpoint_id for each in finished)
        ]
        later = {(each.endpoint_id, each.due_at) for each in finished if each.due_at is not None}
        told += [self._stream.announce_later(endpoint_id, due_at) for endpoint_id, due_at in later]
        self._announcer.announce(told)
        return counted

    async def give_back(self, claimed: Iterable[ClaimedDelivery]) -> None:
        """End leases, and tell others of what they may take up."""
        claimed = list(claimed)
        await self._queue.give_back(claimed)
        self._announcer.announce(map(self._stream.announce, {each.endpoint.id for each in claimed}))

    async def find_changed(self, claimed: Collection[ClaimedDelivery]) -> Sequence[ClaimedDelivery]:
        """Those of the deliveries that are not as they were claimed, as the database has them."""
        return await self._queue.find_changed(claimed)

    def find_missing(self) -> str | None:
        """JetStream, while there is no session with it."""
        if self._link.session is not None:
            return None
        if self._link.is_refused:
            return "The queue's stream cannot be used as it is set; the log says why. The store is asked instead."
        return "The queue does not answer; until it does, the store is asked instead."

    async def recover_lost(self, now: datetime) -> int:
        """Record an interrupted attempt for each lease that ran out."""
        return await self._queue.recover_lost(now)

    def _note_endpoint(self, endpoint: Endpoint) -> None:
        if endpoint.max_in_flight is not None or endpoint.ordering is not Ordering.NONE:
            self._shared.add(endpoint.id)
        else:
            self._shared.discard(endpoint.id)

    def _adapt(self, is_up: bool) -> None:
        """Survey the store often while JetStream is away, and at each change, since something may have been lost."""
        self._queue.survey_every = SURVEY_SECONDS if is_up else self._polling
        self._queue.wake()

    async def _sweep(self) -> None:
        """Announce what is overdue; once for all workers, so that each takes its part."""
        try:
            surveyed = await self._queue.survey()
        except LedgerUnavailable:
            # The worker says so, when it claims.
            return
        overdue = self._clock() - OVERDUE
        self._announcer.announce(self._stream.announce(endpoint_id) for endpoint_id, at in surveyed if at <= overdue)
