"""Which endpoints a worker's next claim looks at, kept in memory.

A claim looks at no endpoint that is not on the agenda, so it costs nothing that others wait for later, or for room.
Whatever makes something due puts its endpoint here; what happens in other processes, and what falls due with time, is
found by a survey of the store, which the queue makes now and then.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime


class Agenda:
    """Endpoints that may have something due now, first come first, and those that will have later."""

    def __init__(self) -> None:
        self._ready: dict[str, None] = {}
        self._later: list[tuple[datetime, str]] = []

    def add(self, endpoint_ids: Iterable[str]) -> None:
        """These may have something due now."""
        self._ready.update(dict.fromkeys(endpoint_ids))

    def add_later(self, endpoint_id: str, at: datetime) -> None:
        """This one may have something due from then on."""
        heapq.heappush(self._later, (at, endpoint_id))

    def add_surveyed(self, surveyed: Sequence[tuple[str, datetime]], now: datetime) -> None:
        """What a survey found: each for which anything waits, with the instant it is due, the longest due first."""
        later = {endpoint_id: at for endpoint_id, at in surveyed if at > now}
        # It may not know of what was put here while it was made.
        for at, endpoint_id in self._later:
            later[endpoint_id] = min(at, later.get(endpoint_id, at))
        self._later = [(at, endpoint_id) for endpoint_id, at in later.items()]
        heapq.heapify(self._later)
        due = dict.fromkeys(endpoint_id for endpoint_id, at in surveyed if at <= now)
        # What came onto the agenda while the survey was made stays, behind those that have waited for longer.
        self._ready = due | self._ready

    def has_ready(self) -> bool:
        """Whether there are endpoints that may have something due now."""
        return bool(self._ready)

    def next_at(self) -> datetime | None:
        """When the next endpoint falls due; None where nothing is known to."""
        return self._later[0][0] if self._later else None

    def take(self, limit: int, room: Callable[[str], int], now: datetime) -> dict[str, int]:
        """At most `limit` endpoints to look at now, each with how much of it there is room for.

        They are taken off, and so are those without room, which come back with the news that there is some.
        """
        while self._later and self._later[0][0] <= now:
            self._ready.setdefault(heapq.heappop(self._later)[1])
        taken: dict[str, int] = {}
        for endpoint_id in list(self._ready):
            if len(taken) == limit:
                break
            del self._ready[endpoint_id]
            if (most := room(endpoint_id)) > 0:
                taken[endpoint_id] = most
        return taken
