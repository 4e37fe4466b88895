"""The bare receivers as the benchmark sees them: where they are, and what they received."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
from pyreqwest.client import Client

from carehook.cli.bench.certificates import Certificates
from carehook.cli.bench.processes import BenchmarkFailed, read_announcement, start_process
from carehook.cli.bench.receiver import HOSTS

PATIENCE: Final = 120.0
"""Seconds without anything new after which a run fails."""

_POLL: Final = 0.05


@dataclass(frozen=True, slots=True)
class Receiver:
    """A bare receiver that runs, and its ports."""

    http: int
    https: int
    pid: int
    client: Client

    def url(
        self, name: object, *, host: str = HOSTS[0], tls: bool = False, delay: int | None = 0, status: int = 200
    ) -> str:
        """Where `name` receives; `delay` is milliseconds, None for never."""
        origin = f"https://{host}:{self.https}" if tls else f"http://{host}:{self.http}"
        return f"{origin}/{'never' if delay is None else delay}/{status}/{name}"

    async def reset(self) -> None:
        """Forget what was received."""
        await self.client.post(self._control("reset")).build().send()

    async def read_receipts(self) -> dict[str, int]:
        """When each delivery came first, by its path, a space and the event's id."""
        found: dict[str, int] = await self._ask("receipts")
        return found

    async def wait_for(self, deliveries: int) -> int:
        """Wait until so many different deliveries came; when the last one did.

        Raises `BenchmarkFailed` where nothing new comes for two minutes.
        """
        seen, deadline = 0, time.monotonic() + PATIENCE
        while True:
            progress = await self._ask("progress")
            if progress["different"] >= deliveries:
                return progress["last"]
            if progress["different"] > seen:
                seen, deadline = progress["different"], time.monotonic() + PATIENCE
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"Of {deliveries} deliveries only {seen} came.")
            await asyncio.sleep(_POLL)

    def _control(self, what: str) -> str:
        return f"http://{HOSTS[0]}:{self.http}/{what}"

    async def _ask(self, what: str) -> dict[str, int]:
        response = await self.client.get(self._control(what)).build().send()
        answer: dict[str, int] = orjson.loads(bytes(await response.bytes()))
        return answer


@asynccontextmanager
async def start_receiver(client: Client, certificates: Certificates, folder: Path) -> AsyncIterator[Receiver]:
    """A bare receiver, plain and TLS, ended with the block."""
    log = folder / "receiver.log"
    arguments = ("-m", "carehook.cli.bench.receiver", str(certificates.receiver))
    async with start_process("the receiver", *arguments, log=log) as process:
        ports = await read_announcement(process, "the receiver", log)
        yield Receiver(ports["http"], ports["https"], process.pid, client)
