"""An organization with endpoints whose receivers take most of what they get, and keep of it only what accounts need."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from carehook import Webhook, WebhookVerificationError
from tests.receivers import Answer, ReceivedRequest, Receiver
from tests.servers.hosts import Host

NEVER: Final = 10**9


@dataclass(frozen=True)
class Habits:
    """How a receiver answers."""

    seconds: float = 0.0
    """After how long."""
    fails_every: int = NEVER
    """Of so many requests the last is answered with 503."""
    gone_every: int = NEVER
    """Of so many requests the last is answered with 410, which disables the endpoint."""
    outage: range = range(0)
    """Which requests, counted from 1, are answered with 503: ten in a row open the circuit."""
    refused_share: float = 0.0
    """The share of the events that are answered with 422 for ever."""

    def choose_status(self, number: int, event_id: str) -> int:
        """How a receiver answers its request of this number."""
        if hashlib.sha256(event_id.encode()).digest()[0] < 256 * self.refused_share:
            return 422
        if number % self.gone_every == 0:
            return 410
        return 503 if number % self.fails_every == 0 or number in self.outage else 200


@dataclass
class Arrival:
    """A request that came, and was as its endpoint's must be. Instants are of the monotonic clock of the test."""

    name: str
    """Of the endpoint."""
    path: str
    event_id: str
    digest: bytes
    """The SHA-256 of the body."""
    status: int
    """What it was to be answered with."""
    began: float
    ended: float = float("inf")
    """Just before the answer was sent."""

    @property
    def is_taken(self) -> bool:
        """Whether it was to be answered with 2xx."""
        return 200 <= self.status <= 299


class FailingReceiver(Receiver):
    """Receives for endpoints, which are told by the first part of their paths, and answers by its habits.

    `fields` are what its endpoints are registered with.
    """

    def __init__(self, host: Host, habits: Habits, **fields: Any) -> None:
        super().__init__(host=host.address)
        self._stands_on = host
        self._lock = threading.Lock()
        self._webhooks: dict[str, Webhook] = {}
        self._unverified: dict[str, list[ReceivedRequest]] = {}
        self.habits = habits
        self._has_relented = False
        self.fields: Mapping[str, Any] = fields
        self.arrivals: list[Arrival] = []
        self.refused: list[tuple[str, str]] = []
        """The endpoint's name and why a request was not as it must be."""

    def open_listener(self) -> socket.socket:
        """See `Receiver`."""
        return self._stands_on.listen()

    def name_url(self, name: str, revision: int = 0) -> str:
        """A URL of an endpoint of this name: one of many."""
        return self.url_for(self.host, f"/{name}/{revision}")

    def expect(self, name: str, signature_value: str, signing_secret: str) -> None:
        """Say what every request to an endpoint must prove, those that came before as well."""
        with self._lock:
            self._webhooks[name] = Webhook(signature_value=signature_value, signing_secret=signing_secret)
            for request in self._unverified.pop(name, []):
                self._verify(self._webhooks[name], name, request)

    def relent(self) -> None:
        """Take everything from now on."""
        self._has_relented = True

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await self.receive(reader)
            self.requests.clear()
            arrival = self._keep(request)
            # So that there is always something in flight that a fault can meet.
            await self.wait_before_answering(arrival.event_id)
            arrival.ended = time.monotonic()
            writer.write(Answer(arrival.status).encode())
            await writer.drain()

    async def wait_before_answering(self, event_id: str) -> None:
        """Let the answer to a request of this event wait."""
        await asyncio.sleep(self.habits.seconds)

    def _keep(self, request: ReceivedRequest) -> Arrival:
        event_id, name = request.headers["webhook-id"], request.path.split("/")[1]
        status = 200 if self._has_relented else self.habits.choose_status(len(self.arrivals) + 1, event_id)
        digest = hashlib.sha256(request.body).digest()
        arrival = Arrival(name, request.path, event_id, digest, status, began=time.monotonic())
        self.arrivals.append(arrival)
        with self._lock:
            if name in self._webhooks:
                self._verify(self._webhooks[name], name, request)
            else:
                self._unverified.setdefault(name, []).append(request)
        return arrival

    def _verify(self, webhook: Webhook, name: str, request: ReceivedRequest) -> None:
        try:
            webhook.verify(request.body, request.headers, now=float(request.headers["webhook-timestamp"]))
        except WebhookVerificationError as error:
            self.refused.append((name, f"{request.headers['webhook-id']}: {error}"))
