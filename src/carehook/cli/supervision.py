"""Several worker processes under one: one that dies is started anew, later each time; a signal goes to all of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from typing import Final

import structlog

from carehook.bootstrap import StartupError, open_carehook
from carehook.cli.failures import CommandFailed
from carehook.cli.serving import Draining, take_port
from carehook.cli.session import log_to_stderr
from carehook.config import Settings, load_settings

COMMAND: Final = (sys.executable, "-m", "carehook.cli", "worker", "--until-stdin-closes")

SHORTEST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
"""Seconds before a worker is started anew, at first and at most; they double each time."""

STEADY_SECONDS: Final = 60.0
"""One that ran for so long begins with the shortest pause again."""

LAST_PORT: Final = 65535

_log = structlog.get_logger("carehook.supervisor")


def supervise_workers(processes: int, port: int | None = None) -> None:
    """Keep `processes` workers running until a signal, then drain them. Raises what kept it from starting.

    The first answers probes on `port`, by default that of the settings, and each other on the next one.
    """
    settings = load_settings(**({} if port is None else {"worker_port": port}))
    log_to_stderr(settings.log_level)
    asyncio.run(_supervise(settings, processes))


async def _supervise(settings: Settings, processes: int) -> None:
    # What keeps the workers from starting is told once, here.
    ports = choose_ports(settings.worker_port, processes)
    for port in filter(None, ports):
        take_port(settings.host, port, "CAREHOOK_WORKER_PORT").close()
    async with open_carehook(settings):
        """It can be opened."""
    with Draining() as draining:
        ended_well = await asyncio.gather(*(_keep_running(draining, port) for port in ports))
    if not all(ended_well):
        raise CommandFailed("A worker did not drain as it should; its leases run out within a minute")


def choose_ports(first: int | None, processes: int) -> list[int | None]:
    """The port of each worker's probes; None for none, 0 for a free one. Raises `StartupError` where they run out."""
    if first is None or first == 0:
        return [first] * processes
    if first + processes - 1 > LAST_PORT:
        raise StartupError(f"CAREHOOK_WORKER_PORT: {processes} processes from {first} on need ports above {LAST_PORT}.")
    return [first + number for number in range(processes)]


async def _keep_running(draining: Draining, port: int | None) -> bool:
    """Run one worker, again and again; whether the last one ended well."""
    pause = SHORTEST_PAUSE
    while True:
        begun = time.monotonic()
        code = await _run_once(draining, port)
        if draining.has_begun():
            return code == 0
        pause = SHORTEST_PAUSE if time.monotonic() - begun >= STEADY_SECONDS else pause
        _log.error("worker_died", exit_code=code, again_in_s=pause)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(draining.wait(), pause)
            return True
        pause = min(2 * pause, LONGEST_PAUSE)


async def _run_once(draining: Draining, port: int | None) -> int:
    command = COMMAND if port is None else (*COMMAND, "--port", str(port))
    # A session of its own: Ctrl-C in a terminal then reaches the supervisor alone, which tells each worker once.
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, start_new_session=True)
    _log.info("worker_started", worker_pid=process.pid, supervisor_pid=os.getpid())
    ended = asyncio.create_task(process.wait())
    asked = asyncio.create_task(draining.wait())
    await asyncio.wait([ended, asked], return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if not ended.done():
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    return await ended
