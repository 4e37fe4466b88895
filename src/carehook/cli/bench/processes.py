"""The processes of a benchmark: the bare receiver, and a Carehook on a fresh embedded store."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pyreqwest.client import Client

from carehook.bootstrap import open_carehook
from carehook.config import Settings
from carehook.directory.endpoints import NewEndpoint
from carehook.directory.organizations import NewOrganization
from carehook.ledger.records import Role

_START_SECONDS = 30.0


class BenchmarkFailed(Exception):
    """The benchmark could not be run; a sentence says why."""


@dataclass(frozen=True, slots=True)
class RunningReceiver:
    """The bare receiver, listening on loopback."""

    url: str


@dataclass(frozen=True, slots=True)
class RunningCarehook:
    """A Carehook under test: where its API is, a publisher's token, and its process."""

    url: str
    token: str
    organization_id: str
    endpoint_id: str
    pid: int

    def read_peak_memory(self) -> int:
        """The most memory its process ever held, in bytes (`VmHWM`, proc(5))."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        if found is None:
            raise BenchmarkFailed("The kernel does not tell the peak memory of a process (VmHWM).")
        return int(found[1]) * 1024


@asynccontextmanager
async def start_receiver() -> AsyncIterator[RunningReceiver]:
    """A bare receiver, ended when the block ends."""
    command = [sys.executable, "-m", "carehook.cli.bench.receiver"]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        if process.stdout is None or not (line := await process.stdout.readline()).strip():
            raise BenchmarkFailed("The bare receiver did not start.")
        yield RunningReceiver(f"http://127.0.0.1:{int(line)}")
    finally:
        await _end(process)


@asynccontextmanager
async def start_carehook(home: Path, receiver: RunningReceiver, client: Client) -> AsyncIterator[RunningCarehook]:
    """`carehook serve` on a fresh embedded store in `home`, with one endpoint, ended when the block ends."""
    port = _find_free_port()
    environment = {
        "CAREHOOK_HOME": str(home),
        "CAREHOOK_PORT": str(port),
        "CAREHOOK_ALLOW_HTTP": "true",
        "CAREHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
    }
    settings = Settings(home=home, port=port, allow_http=True, allowed_networks="127.0.0.0/8")  # type: ignore[arg-type]
    async with open_carehook(settings) as application:
        organization = await application.organizations.create(NewOrganization(name="Benchmark"))
        created = await application.endpoints.register(organization.id, NewEndpoint(url=f"{receiver.url}/webhooks"))
        token = await application.tokens.create(Role.PUBLISHER, organization.id)
        await application.tokens.create(Role.OPERATOR)
    url = f"http://127.0.0.1:{port}"
    with (home / "carehook.log").open("wb") as log:
        process = await _start_serving(environment, log.fileno())
        try:
            await _wait_until_ready(client, url, process)
            yield RunningCarehook(
                url, token.secret.get_secret_value(), organization.id, created.endpoint.id, process.pid
            )
        finally:
            await _end(process)


async def _start_serving(environment: Mapping[str, str], log: int) -> asyncio.subprocess.Process:
    program = "from carehook.cli import main; main()"
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, "serve", env=environment, stdout=log, stderr=log
    )


async def _wait_until_ready(client: Client, url: str, process: asyncio.subprocess.Process) -> None:
    async def ask() -> bool:
        try:
            response = await client.get(f"{url}/readyz").build().send()
        except OSError:
            return False
        except Exception:
            return False
        return response.status == 200

    try:
        async with asyncio.timeout(_START_SECONDS):
            while not await ask():
                if process.returncode is not None:
                    raise BenchmarkFailed("carehook serve ended before it was ready.")
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise BenchmarkFailed("carehook serve was not ready in time.") from None


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    await process.wait()


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
