"""How many requests to one endpoint may be in flight at once: what it has answered decides. Pure.

As TCP finds out what a path carries (RFC 5681 §3.1): begin small, allow one more for each answer, which doubles the
window with each round trip, and halve it for each request that was not answered. One that hangs is down to a single
request after a handful of time limits; one that recovers is back as fast as it answers.

An error is an answer and narrows nothing: whether an endpoint that fails is asked at all is for its circuit breaker,
which the store keeps. So that a breaker which opens finds little under way, nothing is claimed ahead after some
failures in a row.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

START: Final = 8
"""Requests in flight to an endpoint of which nothing is known."""

AHEAD_SECONDS: Final = 0.5
"""For how long what is claimed ahead of an endpoint may have to wait, as it has answered lately."""

AHEAD_AT_MOST: Final = 4
"""How many windows are claimed ahead at most, however fast an endpoint answers."""

FAILURES_IN_A_ROW: Final = 5
"""After so many, nothing is claimed ahead until the next success."""

_WEIGHT: Final = 0.125


class Ending(Enum):
    """What a request's end says of its endpoint."""

    SUCCEEDED = auto()
    FAILED = auto()
    """It answered with an error."""
    UNANSWERED = auto()
    """No connection, or no complete response in time."""
    UNTOLD = auto()
    """Nothing: it was our doing."""


class Window:
    """The requests that may be in flight to one endpoint: `size` of them, never more than `limit`."""

    __slots__ = ("_failures", "_limit", "answer_seconds", "is_filled", "is_proven", "size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._failures = 0  # since the last success
        self.size = min(START, limit)
        self.is_proven = False
        """Whether the last thing known of the endpoint is that it answers."""
        self.is_filled = False
        """Whether as many as may be have been in flight since there were none."""
        self.answer_seconds = 1.0
        """How long answers take lately: their mean, weighted towards the last ones."""

    @property
    def ahead(self) -> float:
        """How many windows may be claimed ahead, so that the next requests wait for nothing."""
        if not self.is_proven or self._failures >= FAILURES_IN_A_ROW:
            return 0.0
        return min(AHEAD_AT_MOST, max(1.0, AHEAD_SECONDS / max(self.answer_seconds, 0.001)))

    def learn(self, ending: Ending, seconds: float) -> None:
        """A request ended, after so many seconds.

        A success proves no more than was tried: the window of an endpoint that never has so much in flight stays as it
        is (RFC 7661).
        """
        if ending is Ending.UNANSWERED:
            self.is_proven = False
            self.size = max(1, self.size // 2)
        elif ending is not Ending.UNTOLD:
            self.is_proven = True
            self.answer_seconds += _WEIGHT * (seconds - self.answer_seconds)
            self._failures = 0 if ending is Ending.SUCCEEDED else self._failures + 1
            if ending is Ending.SUCCEEDED and self.is_filled and self.size < self._limit:
                self.size += 1

    def note(self, in_flight: int) -> None:
        """So many requests are in flight now."""
        if in_flight >= self.size:
            self.is_filled = True
        elif not in_flight:
            self.is_filled = False
