"""A Carehook that stops while an endpoint's deliveries follow a new status, so that it can be killed there.

    python -m tests.servers.interrupted_status METHOD ENDPOINT PARTS

pauses, resumes or deletes an endpoint of the store that the environment names. When PARTS parts, of two deliveries
each, have followed it prints a line and stands still.
"""

import asyncio
import sys
from datetime import datetime

from carehook.bootstrap import open_carehook
from carehook.config import load_settings
from carehook.ledger.records import Settled
from carehook.ledger.sql import settling
from carehook.ledger.sql.ledger import LedgerSql

PART = 2


def stop_after(parts: int) -> None:
    """Let the ledger stand still once it has moved so many parts."""
    settle = LedgerSql.settle
    left = iter(range(parts))

    async def settle_or_stop(self: LedgerSql, endpoint_id: str, now: datetime, *, waits: bool) -> Settled:
        if next(left, None) is not None:
            return await settle(self, endpoint_id, now, waits=waits)
        print("standing still", flush=True)
        await asyncio.Event().wait()
        raise AssertionError("nobody sets the event")

    LedgerSql.settle = settle_or_stop  # type: ignore[method-assign]


async def main(method: str, endpoint_id: str, parts: int) -> None:
    """Change the status, and never end."""
    settling.PART = PART  # type: ignore[misc]
    stop_after(parts)
    async with open_carehook(load_settings()) as carehook:
        await getattr(carehook.endpoints, method)(endpoint_id)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
