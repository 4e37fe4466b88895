"""Several worker processes under one: one that dies is started anew, later each time; a signal goes to all of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from typing import Final

import structlog

from carehook.bootstrap import open_carehook
from carehook.cli.failures import CommandFailed
from carehook.cli.serving import Draining
from carehook.cli.session import log_to_stderr
from carehook.config import Settings, load_settings

COMMAND: Final = (sys.executable, "-m", "carehook.cli", "worker", "--until-stdin-closes")

SHORTEST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
"""Seconds before a worker is started anew, at first and at most; they double each time."""

STEADY_SECONDS: Final = 60.0
"""One that ran for so long begins with the shortest pause again."""

_log = structlog.get_logger("carehook.supervisor")


def supervise_workers(processes: int) -> None:
    """Keep `processes` workers running until a signal, then drain them. Raises what kept it from starting."""
    settings = load_settings()
    log_to_stderr(settings.log_level)
    asyncio.run(_supervise(settings, processes))


async def _supervise(settings: Settings, processes: int) -> None:
    async with open_carehook(settings):
        """What keeps the workers from starting is told once, here."""
    with Draining() as draining:
        ended_well = await asyncio.gather(*(_keep_running(draining) for _ in range(processes)))
    if not all(ended_well):
        raise CommandFailed("A worker did not drain as it should; its leases run out within a minute")


async def _keep_running(draining: Draining) -> bool:
    """Run one worker, again and again; whether the last one ended well."""
    pause = SHORTEST_PAUSE
    while True:
        begun = time.monotonic()
        code = await _run_once(draining)
        if draining.has_begun():
            return code == 0
        pause = SHORTEST_PAUSE if time.monotonic() - begun >= STEADY_SECONDS else pause
        _log.error("worker_died", exit_code=code, again_in_s=pause)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(draining.wait(), pause)
            return True
        pause = min(2 * pause, LONGEST_PAUSE)


async def _run_once(draining: Draining) -> int:
    # A session of its own: Ctrl-C in a terminal then reaches the supervisor alone, which tells each worker once.
    process = await asyncio.create_subprocess_exec(*COMMAND, stdin=asyncio.subprocess.PIPE, start_new_session=True)
    _log.info("worker_started", worker_pid=process.pid, supervisor_pid=os.getpid())
    ended = asyncio.create_task(process.wait())
    asked = asyncio.create_task(draining.wait())
    await asyncio.wait([ended, asked], return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if not ended.done():
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    return await ended
