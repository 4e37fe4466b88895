"""What people did to endpoints and deliveries during a run, and what must come of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Silence:
    """From `since` until `until` no request begins, but those of what was in flight, each once.

    What was in flight was read from the store between `answered`, when somebody was told that nothing more would be
    sent, and `since`. Instants are of the monotonic clock of the test.
    """

    why: str
    endpoint_id: str
    answered: float
    since: float
    until: float
    in_flight: frozenset[str]
    """Events."""
    path: str | None = None
    """Of requests on this path alone; None for all."""
    event_id: str | None = None
    """Of requests of this event alone."""


@dataclass
class Interventions:
    """All that was asked for. Deliveries go by the ids of their endpoint and event."""

    counts: Counter[str] = field(default_factory=Counter)
    """How often each was answered."""
    silences: list[Silence] = field(default_factory=list)
    resent: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often at most each was sent again because somebody asked for that."""
    retried: set[tuple[str, str]] = field(default_factory=set)
    cancelled: set[tuple[str, str]] = field(default_factory=set)
    """Those that somebody wanted cancelled, whether or not it came to that."""
    surprises: list[str] = field(default_factory=list)
    """Answers that nothing explains."""
