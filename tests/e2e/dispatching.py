"""What the tests of dispatch share: Carehook on a real store, workers of its own making, and a receiver with a gate."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from carehook.application import Application
from carehook.bootstrap import build_ledger, make_home, open_carehook, open_database
from carehook.clock import utc_now
from carehook.config import Settings
from carehook.directory.endpoints import EndpointWithSecrets, NewEndpoint
from carehook.directory.organizations import NewOrganization
from carehook.dispatch.access_tokens import AccessTokens
from carehook.dispatch.addresses import AddressRules
from carehook.dispatch.delivery import ATTEMPT_LIMIT, Deliverer
from carehook.dispatch.sender import GuardedSender
from carehook.dispatch.worker import Limits, Worker
from carehook.events import CATALOGUE, parse_event
from carehook.insights import DeliveryDetailView
from carehook.keyring import load_keyring
from carehook.ledger.port import LedgerUnavailable, Queue
from carehook.ledger.records import ClaimedDelivery, DeliveryFilter, FinishedAttempt, PageRequest
from carehook.ledger.sql.queue import QueueSql
from carehook.ledger.states import DeliveryState
from carehook.metrics import Metrics
from tests.receivers import Receiver

REPORT = parse_event(json.dumps(CATALOGUE["patient_report_sent"].example).encode())
FINISHED = parse_event(json.dumps(CATALOGUE["patient_consultation_finished"].example).encode())

PATIENCE = 30.0
"""Seconds after which a wait fails. It is never reached unless something is broken."""

SOON = timedelta(seconds=0.3)
"""For a drain that a test wants to run out."""


class StandingClock:
    """A clock that moves only when it is told to, so that a retry in two hours needs no waiting."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class GatedReceiver(Receiver):
    """Holds every request until `open`, and knows how many it had at once."""

    def __init__(self, status: int = 200) -> None:
        super().__init__()
        self.status = status
        self.waiting = 0
        self.most_at_once = 0
        self._is_open = False
        self._gate = asyncio.Semaphore(0)

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await self.receive(reader)
            self.waiting += 1
            self.most_at_once = max(self.most_at_once, self.waiting)
            try:
                await self._gate.acquire()
            finally:
                self.waiting -= 1
            if self._is_open:
                self._gate.release()
            writer.write(b"HTTP/1.1 %d Answer\r\ncontent-length: 0\r\n\r\n" % self.status)
            await writer.drain()

    def open(self) -> None:
        """Answer all that wait and all that come."""
        self._is_open = True
        self.let_through(1)

    def let_through(self, count: int) -> None:
        """Answer so many of those that wait or come, and hold the rest."""
        for _ in range(count):
            self._loop.call_soon_threadsafe(self._gate.release)


class WatchedQueue:
    """A real queue that counts what is asked of it, and waits or fails when it is told to."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self.claims = 0
        self.claimed: list[str] = []
        self.finished: list[str] = []
        self.given_back: list[str] = []
        self.checks = 0
        self.broken = 0
        """How many claims and results fail from now on."""
        self.cannot_check = False
        self.may_claim = asyncio.Event()
        self.may_finish = asyncio.Event()
        self.may_end_leases = asyncio.Event()
        """Until it is set, the worker ends a lease by its result alone: it gives nothing back and recovers none."""
        self.may_claim.set()
        self.may_finish.set()
        self.may_end_leases.set()

    def _fail_if_broken(self) -> None:
        if self.broken:
            self.broken -= 1
            raise OSError("the database is gone")

    async def claim(
        self, limit: int, *, room: Callable[[str], int], now: datetime, lease: timedelta
    ) -> Sequence[ClaimedDelivery]:
        self.claims += 1
        await self.may_claim.wait()
        self._fail_if_broken()
        claimed = await self._queue.claim(limit, room=room, now=now, lease=lease)
        self.claimed += [each.id for each in claimed]
        return claimed

    async def finish(self, finished: Sequence[FinishedAttempt], now: datetime) -> Sequence[bool]:
        await self.may_finish.wait()
        self._fail_if_broken()
        self.finished += [each.delivery_id for each in finished]
        return await self._queue.finish(finished, now)

    async def give_back(self, claimed: Iterable[ClaimedDelivery]) -> None:
        await self.may_end_leases.wait()
        returned = list(claimed)
        self.given_back += [each.id for each in returned]
        await self._queue.give_back(returned)

    async def find_changed(self, claimed: Collection[ClaimedDelivery]) -> Sequence[ClaimedDelivery]:
        self.checks += 1
        if self.cannot_check:
            raise LedgerUnavailable("the database does not answer")
        return await self._queue.find_changed(claimed)

    async def recover_lost(self, now: datetime) -> int:
        await self.may_end_leases.wait()
        return await self._queue.recover_lost(now)

    def find_missing(self) -> str | None:
        return self._queue.find_missing()

    def wake(self, endpoint_ids: Collection[str] = ()) -> None:
        self._queue.wake(endpoint_ids)

    async def wait(self, *, at_most: timedelta) -> None:
        await self._queue.wait(at_most=at_most)


class Watch:
    """Puts a `WatchedQueue` between a worker and its queue, and remembers it."""

    queue: WatchedQueue

    def __call__(self, queue: Queue) -> Queue:
        self.queue = WatchedQueue(queue)
        return self.queue


async def eventually(predicate: Callable[[], Awaitable[object]], what: str) -> None:
    """Return once `predicate` holds."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not await predicate():
        assert asyncio.get_running_loop().time() < deadline, f"not within {PATIENCE:g} s: {what}"
        await asyncio.sleep(0.01)


async def wait_for_waiting(receiver: GatedReceiver, count: int) -> None:
    """Return once a receiver holds so many requests at once."""

    async def reached() -> bool:
        return receiver.waiting >= count

    await eventually(reached, f"{count} requests at once")


@dataclass(frozen=True)
class Platform:
    """An organization on a store, and what tests ask of it."""

    application: Application
    organization_id: str

    async def register(self, receiver: Receiver | str, **fields: Any) -> EndpointWithSecrets:
        """A new endpoint."""
        url = receiver if isinstance(receiver, str) else receiver.url
        return await self.application.endpoints.register(self.organization_id, NewEndpoint(url=url, **fields))

    async def publish(self, count: int = 1) -> Sequence[str]:
        """The ids of new events."""
        accepted = await self.application.intake.accept(self.organization_id, [REPORT] * count)
        return accepted.event_ids

    async def list_deliveries(self, endpoint_id: str | None = None) -> Sequence[DeliveryDetailView]:
        """Deliveries with their attempts, the oldest first."""
        only, cursor, ids = DeliveryFilter(endpoint_id=endpoint_id), None, []
        while True:
            page = await self.application.insights.deliveries(
                self.organization_id, only, PageRequest(limit=500, cursor=cursor)
            )
            ids += [each.id for each in page.data]
            cursor = page.next_cursor
            if cursor is None:
                break
        return [await self.application.insights.delivery(delivery_id) for delivery_id in sorted(ids)]

    async def get_delivery(self, endpoint_id: str | None = None) -> DeliveryDetailView:
        """The one delivery that there is."""
        (delivery,) = await self.list_deliveries(endpoint_id)
        return delivery

    async def count_states(self, endpoint_id: str | None = None) -> Counter[DeliveryState]:
        """How many deliveries are in each state."""
        counts: Counter[DeliveryState] = Counter()
        cursor = None
        while True:
            page = await self.application.insights.deliveries(
                self.organization_id, DeliveryFilter(endpoint_id=endpoint_id), PageRequest(limit=500, cursor=cursor)
            )
            counts.update(each.state for each in page.data)
            cursor = page.next_cursor
            if cursor is None:
                return counts

    async def wait_for(self, state: DeliveryState, count: int = 1, endpoint_id: str | None = None) -> None:
        """Return once so many deliveries are in a state."""

        async def reached() -> bool:
            return (await self.count_states(endpoint_id))[state] == count

        await eventually(reached, f"{count} deliveries {state}")

    async def wait_for_attempted(self, count: int, endpoint_id: str | None = None) -> None:
        """Return once so many deliveries have been attempted."""

        async def reached() -> bool:
            deliveries = await self.list_deliveries(endpoint_id)
            return sum(1 for each in deliveries if each.attempt_count) >= count

        await eventually(reached, f"{count} deliveries attempted")

    async def wait_for_attempts(self, count: int, endpoint_id: str | None = None) -> DeliveryDetailView:
        """The one delivery, once it has so many attempts."""

        async def reached() -> bool:
            return (await self.get_delivery(endpoint_id)).attempt_count >= count

        await eventually(reached, f"{count} attempts")
        return await self.get_delivery(endpoint_id)


def make_settings(home: Path, **fields: Any) -> Settings:
    """Settings under which endpoints may be on loopback."""
    defaults = {"allow_http": True, "allowed_networks": (ip_network("127.0.0.0/8"),)}
    return Settings(**{"home": home, **defaults, **fields})


@asynccontextmanager
async def open_platform(settings: Settings, clock: Callable[[], datetime] | None = None) -> AsyncIterator[Platform]:
    """Carehook with one organization; nothing works yet."""
    async with open_carehook(settings, create=True, clock=clock or utc_now) as application:
        organization = await application.organizations.create(NewOrganization(name="Example Hospital"))
        yield Platform(application, organization.id)


@asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[Worker]:
    """The worker at work; it is stopped at the end."""
    working = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await working


@asynccontextmanager
async def open_queue(settings: Settings) -> AsyncIterator[QueueSql]:
    """The queue of the store, over connections of its own as another process has them."""
    database = open_database(settings)
    try:
        yield QueueSql(database)
    finally:
        await database.close()


@asynccontextmanager
async def open_worker(
    settings: Settings,
    *,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    wrap: Callable[[Queue], Queue] = lambda queue: queue,
    request_limit: float = 15.0,
    attempt_limit: timedelta = ATTEMPT_LIMIT,
    drain: timedelta = SOON,
) -> AsyncIterator[Worker]:
    """A worker with a queue and a sender of its own, as another process on the same store has them."""
    limits = Limits(settings.concurrency, settings.endpoint_concurrency, drain=drain)
    rules = AddressRules(settings.allowed_networks, settings.allow_http)
    sender = GuardedSender(rules, timeout=request_limit)
    keyring = load_keyring(make_home(settings), settings.encryption_key)
    tokens = AccessTokens(sender, asyncio.get_running_loop().time)
    deliverer = Deliverer(sender, tokens, keyring, settings.retry_schedule, clock, attempt_limit)
    database = open_database(settings)
    queue = QueueSql(database)
    ledger = build_ledger(database, queue.announce)
    try:
        yield Worker(ledger, wrap(queue), deliverer, limits, Metrics(), clock)
    finally:
        await sender.close()
        await database.close()
