"""What is told to other processes, by JetStream: that an endpoint has something due, or will have.

Nobody waits for it. What gathers while some is on its way goes together afterwards, an endpoint once. What cannot be
told is forgotten: whoever sweeps finds it in the store.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Final

from carehook.ledger.jetstream_link import Link
from carehook.ledger.jetstream_session import SessionOver
from carehook.ledger.jetstream_stream import Announcement

_LAST_WORDS_SECONDS: Final = 2


class Announcer:
    """See the module. It begins with the first announcement."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: dict[str, Announcement] = {}
        self._telling: asyncio.Task[None] | None = None

    def announce(self, announcements: Iterable[Announcement]) -> None:
        """Tell it soon; of a subject, the last counts."""
        if self._link.session is None:
            return
        self._waiting.update((each.subject, each) for each in announcements)
        if self._waiting and (self._telling is None or self._telling.done()):
            self._telling = asyncio.create_task(self._tell())

    async def close(self) -> None:
        """Tell what waits, if that can be done quickly."""
        if self._telling is not None:
            await asyncio.wait([self._telling], timeout=_LAST_WORDS_SECONDS)
            self._telling.cancel()
            await asyncio.wait([self._telling])

    async def _tell(self) -> None:
        while self._waiting:
            told, self._waiting = self._waiting, {}
            if session := self._link.session:
                with contextlib.suppress(SessionOver):
                    await session.publish(told.values())
