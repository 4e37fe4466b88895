"""What a worker hears from other processes, by JetStream: which endpoints may have something due, and orders to sweep.

Each announcement is heard by one worker. It is acknowledged once a claim has looked at its endpoint: from then on the
endpoint is on that worker's agenda for as long as it has anything due. A worker that makes no claim, because it has its
hands full, gives what it heard back to the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

import structlog
from nats.aio.msg import Msg

from carehook.ledger.jetstream.link import Link
from carehook.ledger.jetstream.session import Session, SessionOver
from carehook.ledger.jetstream.stream import Stream

SWEEP_SECONDS: Final = 2.0
"""How often one of all workers looks for what is overdue, though nothing told of it, or nobody heard."""

HOLD_SECONDS: Final = 0.1
"""After this, what was heard and not claimed is for other workers."""

_PAUSE_SECONDS: Final = 1.0

_log = structlog.get_logger("carehook.queue")


class Listener:
    """See the module. `hear` is told endpoints; `sweep` is called when it is this worker's turn."""

    def __init__(
        self,
        link: Link,
        stream: Stream,
        hear: Callable[[Collection[str]], None],
        sweep: Callable[[], Awaitable[None]],
    ) -> None:
        self._link = link
        self._stream = stream
        self._hear = hear
        self._sweep = sweep
        self._held: list[Msg] = []
        self._claimed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Listen from now on, if it does not yet."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._order_sweeps())]

    async def close(self) -> None:
        """Hear no more, and leave to others what no claim has looked at."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if session := self._link.session:
            await session.pause()
            await session.give_back(self.take_held())

    def take_held(self) -> Sequence[Msg]:
        """What was heard and no claim has looked at; for a claim that is about to."""
        held, self._held = self._held, []
        return held

    async def settle(self, looked_at: Sequence[Msg]) -> None:
        """Acknowledge what a claim has looked at."""
        self._claimed.set()
        if looked_at and (session := self._link.session):
            await session.acknowledge(looked_at)

    async def _listen(self) -> None:
        while True:
            session = await self._link.wait_for_session()
            try:
                await self._take(session, await session.fetch())
                await self._hold(session)
            except SessionOver:
                # The link knows, and has another soon.
                self._held.clear()
                await asyncio.sleep(0)
            except Exception:
                # Whatever was held comes again; who no longer listens would be missed by nobody.
                _log.exception("announcements_not_heard")
                self._held.clear()
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _take(self, session: Session, messages: Sequence[Msg]) -> None:
        orders = [each for each in messages if each.subject == self._stream.sweep]
        announced = [each for each in messages if each.subject != self._stream.sweep]
        if announced:
            self._held += announced
            self._hear({each.data.decode() for each in announced})
        if orders:
            await self._sweep()
            await session.acknowledge(orders)

    async def _hold(self, session: Session) -> None:
        """Return when claims have looked at all that was heard, or, where there are none, once there are again."""
        while self._held:
            self._claimed.clear()
            try:
                async with asyncio.timeout(HOLD_SECONDS):
                    await self._claimed.wait()
            except TimeoutError:
                await session.pause()
                await session.give_back(self.take_held())
                await self._claimed.wait()

    async def _order_sweeps(self) -> None:
        """Order a sweep now and then. All workers do, and of the same moment's orders one counts."""
        last: Session | None = None
        while True:
            session = await self._link.wait_for_session()
            moment = str(int(time.time() / SWEEP_SECONDS))
            # Whatever was announced before a session may have been lost.
            occasion = moment if session is last else f"{moment}-{id(session)}"
            with contextlib.suppress(SessionOver):
                await session.publish([self._stream.order_sweep(occasion)])
            last = session
            await asyncio.sleep(SWEEP_SECONDS)
