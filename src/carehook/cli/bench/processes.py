"""The processes of a benchmark: each ends with the block that started it, however the block ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import orjson

from carehook.cli.bench.usage import find_family

_START_SECONDS: Final = 60.0
_END_SECONDS: Final = 2.0
_LOG_SHOWN: Final = 600

CAREHOOK: Final = ("-m", "carehook.cli")


class BenchmarkFailed(Exception):
    """The benchmark could not be run; a sentence says why."""


@asynccontextmanager
async def start_process(
    name: str, *arguments: str, log: Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python process that runs `arguments`. Its standard input is ours to close, its log goes to a file."""
    with log.open("ab") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
    try:
        yield process
        if process.returncode is not None:
            raise BenchmarkFailed(f"{name} ended meanwhile: {_read_end(log)}")
    finally:
        await _end(process)


async def read_announcement(process: asyncio.subprocess.Process, name: str, log: Path) -> Any:
    """The line of JSON that a process prints once it listens. Raises `BenchmarkFailed` where none comes."""
    line = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_START_SECONDS):
            line = await process.stdout.readline() if process.stdout else b""
    if not line.strip():
        raise BenchmarkFailed(f"{name} did not start: {_read_end(log)}")
    return orjson.loads(line)


async def run_carehook(*arguments: str, environment: Mapping[str, str]) -> bytes:
    """What a command of Carehook prints. Raises `BenchmarkFailed` with its own words where it fails."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *CAREHOOK,
        *arguments,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, said = await process.communicate()
    if process.returncode != 0:
        raise BenchmarkFailed(f"carehook {' '.join(arguments)} failed: {_cut(said)}")
    return printed


async def _end(process: asyncio.subprocess.Process) -> None:
    """Let it drain, but not for as long as requests that hang may take: nobody needs its store any more."""
    family = find_family(process.pid)
    if process.returncode is None:
        process.terminate()
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(_END_SECONDS):
            await process.wait()
    except TimeoutError:
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await process.wait()


def _read_end(log: Path) -> str:
    return _cut(log.read_bytes()) or "it said nothing"


def _cut(said: bytes) -> str:
    return said.decode(errors="replace").strip()[-_LOG_SHOWN:]
