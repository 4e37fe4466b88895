"""Load: the HTTP client, callers in a closed loop, and an open loop at a rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

from pyreqwest.client import Client, ClientBuilder

_TIME_LIMIT: Final = timedelta(seconds=60)

CALLERS: Final = 64
"""How many callers publish single events at once."""


def build_client(authority: Path) -> Client:
    """The HTTP client that all loads are made with; the one that Carehook sends with, trusting the run's authority."""
    builder = ClientBuilder().no_proxy().follow_redirects(False).http1_only().timeout(_TIME_LIMIT)
    return builder.add_root_certificate_pem(authority.read_bytes()).build()


async def run_callers(act: Callable[[], Awaitable[None]], times: int, callers: int = CALLERS) -> float:
    """Seconds that `callers` took together to act `times` times, each one again as soon as it has done."""
    left = iter(range(times))

    async def call() -> None:
        for _ in left:
            await act()

    begun = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(min(callers, times))))
    return time.perf_counter() - begun


async def run_at_rate(act: Callable[[], Coroutine[None, None, None]], times: int, rate: float) -> None:
    """Act `times` times at `rate` a second.

    An open loop: a slow answer does not put off the next act, or the worst moments would not be counted.
    """
    clock = asyncio.get_running_loop().time
    first = clock()
    acts = []
    for number in range(times):
        await asyncio.sleep(first + number / rate - clock())
        acts.append(asyncio.create_task(act()))
    await asyncio.gather(*acts)


def pick_percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
