"""The queue that is the table of deliveries itself.

What a claim looks at is on the agenda, in memory. The agenda learns from `wake`, from results, and from a survey of the
store: so a claim's cost depends neither on the history nor on how long any backlog is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from carehook.ledger.agenda import Agenda
from carehook.ledger.connections.database import Database
from carehook.ledger.connections.sessions import Session
from carehook.ledger.port import LedgerUnavailable
from carehook.ledger.records import ClaimedDelivery, FinishedAttempt
from carehook.ledger.sql import claiming, finishing
from carehook.ledger.sql.claiming import Claim
from carehook.ledger.sql.finishing import Recorded
from carehook.ledger.sql.queue_statements import CURRENT, SURVEY

SURVEY_EVERY: Final = 0.5
"""Seconds after which another process's work, or what fell due, is found."""

_SURVEY_SHARE: Final = 0.05
"""The part of the time that surveys may take, where very many endpoints have something waiting."""


class QueueSql:
    """See `port.Queue`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.survey_every = SURVEY_EVERY
        self._agenda = Agenda()
        self._news = asyncio.Event()
        self._next_survey = 0.0
        self._last_claim: tuple[datetime, float] | None = None
        # Endpoints that may have more to lease once one of their attempts has ended.
        self._constrained: set[str] = set()

    def wake(self, endpoint_ids: Collection[str] = ()) -> None:
        """Say that something may be due now, or that there is room for it."""
        if endpoint_ids:
            self._agenda.add(endpoint_ids)
        else:
            self._next_survey = 0.0
        self._news.set()

    def announce(self, endpoint_ids: Collection[str]) -> None:
        """Say to all who claim, here or elsewhere, that these endpoints may have something due."""
        self.wake(endpoint_ids)

    async def close(self) -> None:
        """Let go of what the queue holds beside the database."""

    async def wait(self, *, at_most: timedelta) -> None:
        """Wait for `wake`, for what falls due, or for as long as another process's work may go unseen."""
        if self._agenda.has_ready():
            # The last claim did not come to them, or they had more than it might take.
            return
        try:
            await asyncio.wait_for(self._news.wait(), min(at_most.total_seconds(), self._until_next_due()))
        except TimeoutError:
            return

    def _until_next_due(self) -> float:
        """Seconds until the next endpoint on the agenda is due, by the time of the last claim."""
        next_at = self._agenda.next_at()
        if next_at is None or self._last_claim is None:
            return float("inf")
        now, at = self._last_claim
        return max(0.0, (next_at - now).total_seconds() - (time.monotonic() - at))

    async def claim(
        self, limit: int, *, room: Callable[[str], int], now: datetime, lease: timedelta
    ) -> Sequence[ClaimedDelivery]:
        """Lease due deliveries of endpoints that are on the agenda."""
        self._news.clear()
        self._last_claim = now, time.monotonic()
        await self._survey_now_and_then(now)
        asked = self._agenda.take(limit, room, now)
        if not asked:
            return []
        share = max(1, limit // len(asked))
        asked = {endpoint_id: min(most, share) for endpoint_id, most in asked.items()}
        try:
            claim = await self._claim(asked, now, now + lease)
        except BaseException:
            self._agenda.add(asked)
            raise
        self._note(claim)
        return claim.deliveries

    async def finish(self, finished: Sequence[FinishedAttempt], now: datetime) -> Sequence[bool]:
        """Record attempts whose lease still holds, and move their deliveries."""
        recorded = await self._finish(finished, now)
        # The results are recorded whatever becomes of this; the next failure disables what is not disabled now.
        with contextlib.suppress(LedgerUnavailable):
            for endpoint_id in recorded.to_disable:
                await self._database.run(partial(_disable, endpoint_id=endpoint_id, now=now))
        for each in finished:
            if each.due_at is not None:
                self._agenda.add_later(each.endpoint_id, each.due_at)
        if more := self._constrained.intersection(each.endpoint_id for each in finished):
            self.wake(more)
        elif any(each.due_at is not None for each in finished):
            # Whoever waits does not know yet of what falls due.
            self._news.set()
        return recorded.counted

    async def give_back(self, claimed: Iterable[ClaimedDelivery]) -> None:
        """End leases of deliveries that were not attempted."""
        claimed = list(claimed)
        if not claimed:
            return
        await self._give_back(claimed)
        self.wake({each.endpoint.id for each in claimed})

    async def find_changed(self, claimed: Collection[ClaimedDelivery]) -> Sequence[ClaimedDelivery]:
        """Those of the deliveries that are not as they were claimed."""
        if not claimed:
            return []
        current = await self._read_current([each.id for each in claimed])
        return [each for each in claimed if current.get(each.id) != (each.lease_token, each.endpoint.revision)]

    def find_missing(self) -> str | None:
        """Nothing: it is made of the store alone."""
        return None

    async def recover_lost(self, now: datetime) -> int:
        """Record an interrupted attempt for each lease that ran out."""
        recovered = 0
        while count := await self._recover_some(now):
            recovered += count
            self.wake()
        return recovered

    async def survey(self) -> Sequence[tuple[str, datetime]]:
        """Each endpoint for which something waits, with the instant it is to be tried, the longest due first."""
        return await self._database.run(lambda session: SURVEY.fetch(session), durable=False)

    async def _survey_now_and_then(self, now: datetime) -> None:
        begun = time.monotonic()
        if begun < self._next_survey:
            return
        # Set first: what is told meanwhile may ask for another.
        self._next_survey = begun + self.survey_every
        try:
            surveyed = await self.survey()
        except BaseException:
            self._next_survey = 0.0
            raise
        self._agenda.add_surveyed(surveyed, now)
        took = time.monotonic() - begun
        if self._next_survey:
            self._next_survey = max(self._next_survey, begun + took / _SURVEY_SHARE)

    def _note(self, claim: Claim) -> None:
        self._agenda.add(claim.perhaps_more)
        for endpoint_id, at in claim.ask_again.items():
            self._agenda.add_later(endpoint_id, at)
        # One that gave nothing stays: it may wait for an attempt of ours that was claimed before.
        self._constrained.difference_update(each.endpoint.id for each in claim.deliveries)
        self._constrained |= claim.constrained

    async def _claim(self, asked: dict[str, int], now: datetime, until: datetime) -> Claim:
        # A power cut may undo a lease: what it was for is due again, as when its worker dies.
        return await self._database.run(lambda session: claiming.claim(session, asked, now, until), durable=False)

    async def _finish(self, finished: Sequence[FinishedAttempt], now: datetime) -> Recorded:
        return await self._database.run(lambda session: finishing.finish(session, finished, now))

    async def _give_back(self, claimed: Sequence[ClaimedDelivery]) -> None:
        await self._database.run(lambda session: finishing.give_back(session, claimed), durable=False)

    async def _read_current(self, delivery_ids: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        """Of those that are pending under a lease and may be sent: its token, and the revision of the endpoint."""
        # Not on the writer's thread: whoever waits for this sends nothing.
        async with self._database.read() as connection:
            found = await connection.execute(CURRENT, {"ids": delivery_ids})
            return {delivery_id: (token, revision) for delivery_id, token, revision in found}

    async def _recover_some(self, now: datetime) -> int:
        return await self._database.run(lambda session: finishing.recover_some(session, now))


def _disable(session: Session, endpoint_id: str, now: datetime) -> bool:
    return finishing.disable(session, endpoint_id, now)
