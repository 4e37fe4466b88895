"""What work costs on a store that has delivered much: on a store of its own, by the queue itself, without a worker."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from carehook.application import Application
from carehook.cli.bench.load import pick_percentile
from carehook.cli.bench.measured import Measured, name_history_ratio
from carehook.cli.bench.scenarios.queueing import CLAIM, accept, claim, make_organization, succeed

NAME: Final = "history"
DESCRIPTION: Final = "500 events accepted, claimed and finished after 10 thousand to a million that are over"

_SIZES: Final = (10_000, 100_000, 1_000_000)
_ENDPOINTS: Final = 10
_EVENTS_AT_ONCE: Final = 500
_TURNS: Final = 25


def choose_sizes(scale: float) -> list[int]:
    """How many deliveries are over, one history after another; a scale below 1 makes the longer ones shorter."""
    return sorted({max(_SIZES[0], round(size * min(1.0, scale))) for size in _SIZES})


async def measure_histories(
    carehook: Application, sizes: Sequence[int], settle: Callable[[], Awaitable[None]], tell: Callable[[str], None]
) -> Sequence[Measured]:
    """Milliseconds in which 500 events are accepted for one endpoint, claimed and finished, after each history.

    A history is of 10 endpoints, and grows from size to size; `settle` gives the store time for its own work.
    """
    past = await make_organization(carehook, _ENDPOINTS)
    present = await make_organization(carehook, 1)
    turns: dict[int, float] = {}
    over = 0
    for size in sizes:
        tell(f"the history of {size:,}")
        while over < size:
            over += await _deliver(carehook, past, _EVENTS_AT_ONCE)
        await settle()
        turns[size] = pick_percentile([await _measure_turn(carehook, present) for _ in range(_TURNS)], 0.5)
    measured = [
        Measured(f"{CLAIM} accepted, claimed and finished after {size:,}", turn, "ms") for size, turn in turns.items()
    ]
    shortest, longest = min(sizes), max(sizes)
    if shortest < longest:
        measured.append(Measured(name_history_ratio(longest, shortest), turns[longest] / turns[shortest], "×"))
    return measured


async def _deliver(carehook: Application, organization_id: str, events: int) -> int:
    """Accept events and let all their deliveries arrive; how many these are."""
    deliveries = due = await accept(carehook, organization_id, events)
    while due:
        claimed = await claim(carehook, CLAIM)
        await succeed(carehook, claimed)
        due -= len(claimed)
    return deliveries


async def _measure_turn(carehook: Application, organization_id: str) -> float:
    begun = time.perf_counter()
    await _deliver(carehook, organization_id, CLAIM)
    return (time.perf_counter() - begun) * 1000
