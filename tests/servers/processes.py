"""How the processes of test servers end: when they are told to, and at the latest with the tests' own process."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any, Final

_PATIENCE: Final = 10.0


def end_process(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """Send a signal and return when the process has ended, or has been killed because it did not."""
    process.send_signal(how)
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def start_watchdog(script: str, *arguments: str | Path, **account: Any) -> subprocess.Popen[bytes]:
    """A shell script that begins with `read`, which returns when the tests' process lets go of its end of the pipe.

    That is when `communicate` is called, and in the end also after `kill -9`.
    """
    return subprocess.Popen(
        ["/bin/sh", "-c", script, "watchdog", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
        **account,
    )
