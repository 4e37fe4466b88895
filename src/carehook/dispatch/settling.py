"""What is left of a change of an endpoint's status: its deliveries follow it, part by part, until all have.

Laws:
- Any worker settles any endpoint, whoever changed it and whatever became of them. Where another is at one, it goes on.
- After each part there is a pause as long as the part took, so that half of the store's time is left to all else.
- Where nothing can be moved now, as others have it locked, it is left for later.
"""

from __future__ import annotations

import asyncio
import random
import time

from carehook.clock import Clock
from carehook.dispatch.recorder import log_failure
from carehook.ledger.port import Ledger, LedgerUnavailable


async def settle_all(ledger: Ledger, clock: Clock, stopping: asyncio.Event) -> None:
    """A part of each unsettled endpoint in turn, until there is none or nothing moves any more, or until `stopping`.

    Raises `LedgerUnavailable`.
    """
    is_moving = True
    while is_moving:
        is_moving = False
        unsettled = list(await ledger.unsettled())
        # Workers that begin at the same moment go each another way.
        random.shuffle(unsettled)
        for endpoint_id in unsettled:
            if stopping.is_set():
                return
            begun = time.monotonic()
            is_moving |= await _settle_part(ledger, endpoint_id, clock)
            await _pause(stopping, time.monotonic() - begun)


async def _settle_part(ledger: Ledger, endpoint_id: str, clock: Clock) -> bool:
    """Whether any delivery moved."""
    try:
        return (await ledger.settle(endpoint_id, clock(), waits=False)).moved > 0
    except LedgerUnavailable:
        raise
    except Exception as error:
        # The others go on.
        log_failure("endpoint_not_settled", error, endpoint_id=endpoint_id)
        return False


async def _pause(stopping: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stopping.wait(), seconds)
    except TimeoutError:
        return
