"""What is told to other processes, by JetStream: that an endpoint has something due, or will have.

Nobody waits for it. What gathers while much is on its way goes together afterwards, an endpoint once. What cannot be
told is forgotten: whoever sweeps finds it in the store.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Final

from carehook.ledger.jetstream.link import Link
from carehook.ledger.jetstream.session import SessionOver
from carehook.ledger.jetstream.stream import Announcement

_LAST_WORDS_SECONDS: Final = 2

_ON_THEIR_WAY: Final = 8
"""How many batches may wait to be acknowledged before others gather behind them."""


class Announcer:
    """See the module. It begins with the first announcement."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: dict[str, Announcement] = {}
        self._telling: set[asyncio.Task[None]] = set()

    def announce(self, announcements: Iterable[Announcement]) -> None:
        """Tell it soon; of a subject, the last counts."""
        if self._link.session is None:
            return
        self._waiting.update((each.subject, each) for each in announcements)
        if self._waiting and len(self._telling) < _ON_THEIR_WAY:
            telling = asyncio.create_task(self._tell())
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)

    async def close(self) -> None:
        """Tell what waits, if that can be done quickly."""
        if telling := list(self._telling):
            await asyncio.wait(telling, timeout=_LAST_WORDS_SECONDS)
            for each in telling:
                each.cancel()
            await asyncio.wait(telling)

    async def _tell(self) -> None:
        while self._waiting:
            told, self._waiting = self._waiting, {}
            if session := self._link.session:
                with contextlib.suppress(SessionOver):
                    await session.publish(told.values())
