"""What a claim costs while much is due: on a store of its own, by the queue itself, without a worker."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from carehook.application import Application
from carehook.cli.bench.load import pick_percentile
from carehook.cli.bench.measured import Measured, name_claim_ratio
from carehook.cli.bench.processes import BenchmarkFailed
from carehook.cli.bench.scenarios.queueing import CLAIM, accept, claim, make_organization, succeed
from carehook.ledger.records import ClaimedDelivery

NAME: Final = "backlog"
DESCRIPTION: Final = "claims of 500, and what records their results, while 10 thousand to 5 million are due"

_SIZES: Final = (10_000, 100_000, 1_000_000, 5_000_000)
LARGEST: Final = 1_000_000
"""The largest backlog unless another is asked for; 5 million rows take minutes to load."""

_ENDPOINTS: Final = 100
_EVENTS_AT_ONCE: Final = 50
_ROOM: Final = 64
_CLAIMS: Final = 25
_TURNS: Final = 9


def choose_sizes(largest: int, scale: float) -> list[int]:
    """How many deliveries are due, one backlog after another; a scale below 1 makes the larger ones smaller."""
    return sorted({max(_SIZES[0], round(size * min(1.0, scale))) for size in _SIZES if size <= largest})


async def measure_backlogs(
    carehook: Application, sizes: Sequence[int], settle: Callable[[], Awaitable[None]], tell: Callable[[str], None]
) -> Sequence[Measured]:
    """Milliseconds of a claim, and of a claim with the recording of its results, at each size of the backlog.

    The backlog is that of 100 endpoints and grows from size to size; `settle` gives the store time for its own work.
    """
    organization_id = await make_organization(carehook, _ENDPOINTS)
    claims: dict[int, float] = {}
    measured = []
    due = 0
    for size in sizes:
        tell(f"the backlog of {size:,}")
        begun, loaded = time.perf_counter(), size - due
        due += await _load(carehook, organization_id, size - due)
        measured.append(Measured(f"loading a backlog up to {size:,}", loaded / (time.perf_counter() - begun), "rows/s"))
        await settle()
        claims[size] = pick_percentile([await _claim_alone(carehook) for _ in range(_CLAIMS)], 0.5)
        turns = [await _claim_and_finish(carehook) for _ in range(_TURNS)]
        due -= sum(count for _, count in turns)
        both = pick_percentile([taken for taken, _ in turns], 0.5)
        measured += [
            Measured(f"claim of {CLAIM} at {size:,} due", claims[size], "ms"),
            Measured(f"claim of {CLAIM} with its results at {size:,} due", both, "ms"),
        ]
    smallest, largest = min(sizes), max(sizes)
    if smallest < largest:
        measured.append(Measured(name_claim_ratio(largest, smallest), claims[largest] / claims[smallest], "×"))
    return measured


async def _load(carehook: Application, organization_id: str, deliveries: int) -> int:
    """Accept as many events as make so many deliveries; how many these are."""
    loaded = 0
    while loaded < deliveries:
        missing = -(-(deliveries - loaded) // _ENDPOINTS)
        loaded += await accept(carehook, organization_id, min(missing, _EVENTS_AT_ONCE))
    return loaded


async def _claim(carehook: Application) -> Sequence[ClaimedDelivery]:
    claimed = await claim(carehook, _ROOM)
    if len(claimed) < CLAIM:
        raise BenchmarkFailed(f"A claim of {CLAIM} got {len(claimed)} though more are due.")
    return claimed


async def _claim_alone(carehook: Application) -> float:
    begun = time.perf_counter()
    claimed = await _claim(carehook)
    taken = time.perf_counter() - begun
    await carehook.queue.give_back(claimed)
    return taken * 1000


async def _claim_and_finish(carehook: Application) -> tuple[float, int]:
    begun = time.perf_counter()
    claimed = await _claim(carehook)
    await succeed(carehook, claimed)
    return (time.perf_counter() - begun) * 1000, len(claimed)
