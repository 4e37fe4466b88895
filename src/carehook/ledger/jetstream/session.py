"""A session with JetStream: one connection, with the stream and its consumer in place, until something of it fails.

A session is healthy or over. Whatever goes wrong ends it, with the reason: a connection that is lost, a publish that is
not acknowledged, a server that no longer answers those who wait for announcements.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterable, Sequence
from typing import Final, Self

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import PubAck

from carehook.ledger.jetstream.servers import (
    CLIENT_ERRORS,
    Server,
    Unreachable,
    connect,
    describe_error,
    disconnect,
)
from carehook.ledger.jetstream.stream import (
    CONSUMER,
    OLDEST_SERVER,
    Announcement,
    Stream,
    StreamNotReady,
    StreamUnusable,
    prepare,
)

FETCHED_AT_ONCE: Final = 100

_REQUEST_SECONDS: Final = 3
_PUBLISH_SECONDS: Final = 5
_EXPIRES: Final = 10.0
_HEARTBEAT: Final = 1.0
_SILENCE: Final = 3 * _HEARTBEAT
_PUBLISHED_AT_ONCE: Final = 1000
_NANOSECONDS: Final = 1_000_000_000

# Statuses that end a pull and say nothing against the next (ADR-13).
_PULL_IS_OVER: Final = frozenset({"404", "408"})
_LEADER_CHANGED: Final = "leadership change"


class SessionOver(Exception):
    """The session has ended; the message is why."""


class Session:
    """See the module. `fetch` is for one caller."""

    _client: Client
    _jetstream: JetStreamContext

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._subscription: Subscription | None = None
        self._asked = 0
        self._arrived: list[Msg] = []
        self._news = asyncio.Event()
        self._over = asyncio.Event()
        self._reason = ""

    @classmethod
    async def open(cls, servers: Sequence[Server], tls: ssl.SSLContext, stream: Stream) -> Self:
        """Connect to one of the servers and see that the stream is as it must be.

        Raises `Unreachable`, `StreamUnusable` or `StreamNotReady`.
        """
        session = cls(stream)
        client = await connect(servers, tls, lambda: session.end("the connection was lost"))
        session._client = client
        session._jetstream = client.jetstream(
            timeout=_REQUEST_SECONDS, publish_async_max_pending=2 * _PUBLISHED_AT_ONCE
        )
        try:
            await session._prepare()
        except CLIENT_ERRORS as error:
            await session.close()
            raise Unreachable(f"the NATS server {describe_error(error)}") from None
        except BaseException:
            await session.close()
            raise
        return session

    async def _prepare(self) -> None:
        version = self._client.connected_server_version
        if (version.major, version.minor) < OLDEST_SERVER:
            oldest = ".".join(map(str, OLDEST_SERVER))
            raise StreamUnusable(
                f"the NATS server is version {version.major}.{version.minor}; Carehook needs {oldest} or newer"
            )
        try:
            await prepare(self._jetstream, self._stream, clustered=bool(self._client._server_info.get("cluster")))
        except StreamNotReady:
            # The server does not answer what a user may not ask.
            if "permissions violation" in str(self._client.last_error).lower():
                raise StreamUnusable("the NATS user may not use JetStream: allow it $JS.API.> and _INBOX.>") from None
            raise

    def end(self, reason: str) -> None:
        """Say that it is over; the first reason counts."""
        if not self._over.is_set():
            self._reason = reason
            self._over.set()
            self._news.set()

    async def wait_until_over(self) -> str:
        """Return when it is over, with the reason."""
        await self._over.wait()
        return self._reason

    async def close(self) -> None:
        """End it, and the connection."""
        self.end("it was closed")
        await disconnect(self._client)

    async def publish(self, announcements: Iterable[Announcement]) -> None:
        """Return when all are stored. Raises `SessionOver`."""
        waiting = list(announcements)
        try:
            while waiting:
                batch, waiting = waiting[:_PUBLISHED_AT_ONCE], waiting[_PUBLISHED_AT_ONCE:]
                async with asyncio.timeout(_PUBLISH_SECONDS):
                    await asyncio.gather(*[await self._publish(each) for each in batch])
        except CLIENT_ERRORS as error:
            failure = self._fail(f"the stream {describe_error(error)}")
            if (task := asyncio.current_task()) is not None and task.cancelling():
                # The client takes a cancellation for its own time limit while it waits for earlier messages.
                raise asyncio.CancelledError from None
            raise failure from None

    async def _publish(self, each: Announcement) -> asyncio.Future[PubAck]:
        return await self._jetstream.publish_async(each.subject, each.payload, headers=each.headers)

    async def fetch(self) -> Sequence[Msg]:
        """Messages for a worker, at least one, as soon as there is one. Raises `SessionOver`."""
        try:
            while not self._arrived:
                if not self._asked:
                    await self._ask()
                async with asyncio.timeout(_SILENCE):
                    await self._news.wait()
                self._news.clear()
                if self._over.is_set():
                    raise SessionOver(self._reason)
        except CLIENT_ERRORS as error:
            raise self._fail(f"the stream {describe_error(error)}") from None
        return self._take_arrived()

    async def pause(self) -> None:
        """Have no messages sent until the next `fetch`, and give back to other workers those that were."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            self._asked = 0
            try:
                await subscription.unsubscribe()
            except CLIENT_ERRORS as error:
                self._fail(f"the connection {describe_error(error)}")
        await self.give_back(self._take_arrived())

    def _take_arrived(self) -> Sequence[Msg]:
        arrived, self._arrived = self._arrived, []
        return arrived

    async def acknowledge(self, messages: Iterable[Msg]) -> None:
        """Say that messages are done with. Where that is lost, they come again."""
        await self._answer(messages, b"+ACK")

    async def give_back(self, messages: Iterable[Msg]) -> None:
        """Let another worker have messages at once."""
        await self._answer(messages, b"-NAK")

    async def _answer(self, messages: Iterable[Msg], answer: bytes) -> None:
        try:
            for message in messages:
                await self._client.publish(message.reply, answer)
        except CLIENT_ERRORS as error:
            self._fail(f"the connection {describe_error(error)}")

    async def _ask(self) -> None:
        if self._subscription is None:
            # The server drops what was asked for from an inbox that is there no more.
            self._subscription = await self._client.subscribe(self._client.new_inbox(), cb=self._receive)
        pull = {
            "batch": FETCHED_AT_ONCE,
            "expires": int(_EXPIRES * _NANOSECONDS),
            "idle_heartbeat": int(_HEARTBEAT * _NANOSECONDS),
        }
        self._asked = FETCHED_AT_ONCE
        await self._client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{self._stream.name}.{CONSUMER}",
            json.dumps(pull).encode(),
            self._subscription.subject,
        )

    async def _receive(self, message: Msg) -> None:
        headers = message.headers or {}
        match headers.get("Status"):
            case None:
                self._asked -= 1
                self._arrived.append(message)
            case "100":  # a heartbeat
                pass
            case status if status in _PULL_IS_OVER or _LEADER_CHANGED in headers.get("Description", "").lower():
                self._asked = 0
            case status:
                self.end(f"the stream gives no messages: {status} {headers.get('Description', '')}".strip())
        self._news.set()

    def _fail(self, reason: str) -> SessionOver:
        self.end(reason)
        return SessionOver(self._reason)
