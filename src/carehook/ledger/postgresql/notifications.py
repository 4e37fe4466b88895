"""What processes tell each other through PostgreSQL: which endpoints may have something due.

A notification that is lost costs time and nothing else: behind it each process surveys the store. Nobody waits for one
to be sent, and at most one is on its way at a time; what there is to tell meanwhile goes together in the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final

import structlog

from carehook.ledger.connections.postgresql import DRIVER_ERRORS, Connections, StatementError, close_connection
from carehook.ledger.port import LedgerUnavailable

CHANNEL: Final = "carehook_due"

_log = structlog.get_logger("carehook.queue")

_LONGEST_PAYLOAD: Final = 7900
"""Bytes that one notification carries; PostgreSQL takes less than 8000."""

_MOST_NAMED: Final = 1000
"""With more endpoints than this, the others are told that it may be any."""

_PAUSE: Final = 0.002
"""Seconds between notifications: each is a transaction, and a busy publisher would send thousands."""

_CONNECT_AGAIN_AFTER: Final = 1.0
_CHECK_EVERY: Final = 20.0
_CHECK_TIMEOUT: Final = 10.0
"""Seconds between asking whether a connection that hears nothing is still there, and for the answer."""

_NOTIFY: Final = "SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload"


class Notifications:
    """Tells other processes of endpoints, and hears of them: `hear` is given their ids; none means any."""

    def __init__(self, connections: Connections, hear: Callable[[Collection[str]], None]) -> None:
        self._connections = connections
        self._hear = hear
        # A process hears itself as well, and has known before.
        self._sender = secrets.token_hex(8)
        self._untold: set[str] = set()
        self._telling: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None

    def announce(self, endpoint_ids: Collection[str]) -> None:
        """Tell the others of endpoints, soon."""
        self._untold.update(endpoint_ids)
        if self._untold and self._telling is None:
            self._telling = asyncio.create_task(self._tell())

    def listen(self) -> None:
        """Begin to hear of others, if this has not begun."""
        if self._listening is None:
            self._listening = asyncio.create_task(self._keep_listening())

    async def close(self) -> None:
        """Tell what is left to tell, and hear no more."""
        if self._listening is not None:
            self._listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listening
        if self._telling is not None:
            await self._telling

    async def _tell(self) -> None:
        try:
            while self._untold:
                payloads = build_payloads(self._sender, self._untold)
                self._untold = set()
                # It need not reach the disk: who would hear of it must survey after a crash anyway.
                await self._connections.fetch(_NOTIFY, CHANNEL, payloads, durable=False)
                await asyncio.sleep(_PAUSE)
        except (LedgerUnavailable, StatementError):
            # Whoever stores or claims next will say that the store is away; that nobody reads PostgreSQL's queue of
            # notifications is no reason to fail.
            self._untold.clear()
        finally:
            self._telling = None

    async def _keep_listening(self) -> None:
        while True:
            try:
                await self._listen()
            except (LedgerUnavailable, *DRIVER_ERRORS):
                # Whoever claims says so.
                pass
            except Exception:
                _log.exception("notifications_not_heard")
            await asyncio.sleep(_CONNECT_AGAIN_AFTER)

    async def _listen(self) -> None:
        connection = await self._connections.open()
        try:
            over = asyncio.Event()
            connection.add_termination_listener(lambda _: over.set())
            await connection.add_listener(CHANNEL, self._on_notification)
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), _CHECK_EVERY)
                    return
                await connection.execute("SELECT", timeout=_CHECK_TIMEOUT)
        finally:
            await close_connection(connection)

    def _on_notification(self, _connection: Any, _process: int, _channel: str, payload: object) -> None:
        sender, _, names = str(payload).partition(" ")
        if sender != self._sender:
            self._hear(names.split(",") if names else ())


def build_payloads(sender: str, endpoint_ids: Collection[str]) -> list[str]:
    """The payloads that tell of endpoints: the sender, a space, and ids between commas; no ids mean any endpoint."""
    if len(endpoint_ids) > _MOST_NAMED:
        return [f"{sender} "]
    return [f"{sender} {names}" for names in _join_names(endpoint_ids, _LONGEST_PAYLOAD - len(sender) - 1)]


def _join_names(names: Iterable[str], longest: int) -> Iterator[str]:
    joined = ""
    for name in names:
        if joined and len(joined) + 1 + len(name) > longest:
            yield joined
            joined = ""
        joined = f"{joined},{name}" if joined else name
    yield joined
