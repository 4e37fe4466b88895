"""The link to JetStream: a session at a time, and another when it is over, for as long as it takes.

That a session is over is told once, and once that there is another; what happens in between is not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from carehook.ledger.jetstream.servers import JetStreamUnavailable
from carehook.ledger.jetstream.session import Session
from carehook.ledger.jetstream.stream import StreamNotReady, StreamUnusable

_PAUSE_SECONDS: Final = 0.5
FIRST_PATIENCE: Final = 15.0
"""Seconds for which a cluster that has just started may take to choose its leaders."""

_log = structlog.get_logger("carehook.queue")


OnChange = Callable[[bool], None]
"""Told whether the link is up, whenever that changes."""


class Link:
    """Up once it is opened, until it is closed, but for times that it tells of."""

    def __init__(self, open_session: Callable[[], Awaitable[Session]]) -> None:
        self._open_session = open_session
        self._session: Session | None = None
        self.is_refused = False
        """Whether it is down because JetStream's stream cannot be used as somebody has set it."""
        self._is_up = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def session(self) -> Session | None:
        """The session, while the link is up."""
        return self._session

    async def wait_for_session(self) -> Session:
        """The session, once the link is up."""
        while self._session is None:
            await self._is_up.wait()
        return self._session

    async def open(self, on_change: OnChange) -> None:
        """Open the first session. `on_change` is told of that and of each change. Raises `JetStreamUnavailable`."""
        deadline = time.monotonic() + FIRST_PATIENCE
        while self._session is None:
            try:
                self._enter(await self._open_session())
            except StreamNotReady:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)
        on_change(True)
        self._keeper = asyncio.create_task(self._keep(on_change))

    async def close(self) -> None:
        """End the session, and open no other."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._session is not None:
            await self._session.close()

    async def _keep(self, on_change: OnChange) -> None:
        while True:
            session = await self.wait_for_session()
            reason = await session.wait_until_over()
            down_since = time.monotonic()
            self._session = None
            self._is_up.clear()
            _log.warning("jetstream_lost", reason=reason, until_then="the database is asked instead")
            on_change(False)
            await session.close()
            self._enter(await self._reopen())
            _log.warning("jetstream_back", seconds=round(time.monotonic() - down_since, 1))
            on_change(True)

    def _enter(self, session: Session) -> None:
        self._session = session
        self.is_refused = False
        self._is_up.set()

    async def _reopen(self) -> Session:
        told = ""
        while True:
            try:
                return await self._open_session()
            except StreamUnusable as error:
                # Time does not mend this, so somebody must hear of it.
                self.is_refused = True
                if str(error) != told:
                    told = str(error)
                    _log.error("jetstream_unusable", reason=told)
            except JetStreamUnavailable:
                self.is_refused = False
            except Exception:
                _log.exception("jetstream_not_opened")
            await asyncio.sleep(_PAUSE_SECONDS)
