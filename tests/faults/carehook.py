"""The command `carehook` on a machine whose clock can be set, and with leases as short as a test has time for.

    python -m tests.faults.carehook LEASE_SECONDS CLOCK_FILE ARGUMENTS...

`CLOCK_FILE` holds one double: how many seconds the clock is ahead (`tests.faults.clocks`). All else is the command's
own.
"""

from __future__ import annotations

import sys
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from typing import Final

from carehook.application import Application
from carehook.bootstrap import open_carehook
from carehook.cli import main, serving
from carehook.config import Settings
from carehook.dispatch.worker import Limits
from carehook.ledger.sql import settling
from tests.faults.clocks import FileClock

_PART: Final = 20
"""Deliveries that follow the status of their endpoint at once."""


def run(lease_seconds: float, clock_file: Path, arguments: list[str]) -> None:
    """Run the command, and exit."""
    clock = FileClock(clock_file)

    def open_here(settings: Settings, *, create: bool = False) -> AbstractAsyncContextManager[Application]:
        # An attempt may begin in the first half of a lease, as it may with the product's own.
        lease = timedelta(seconds=lease_seconds)
        limits = Limits(settings.concurrency, settings.endpoint_concurrency, lease=lease, attempt=lease / 2)
        return open_carehook(settings, create=create, clock=clock, limits=limits)

    setattr(serving, open_carehook.__name__, open_here)
    # So that what follows a change of an endpoint's status can be interrupted with no more than a test has waiting.
    vars(settling)["PART"] = _PART
    sys.argv[1:] = arguments
    main()


if __name__ == "__main__":
    run(float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
