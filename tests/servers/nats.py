"""NATS with JetStream out of a wheel: real servers on loopback, one or a cluster of three, that leave nothing behind.

They sync their files lazily, as NATS does by default: what they took survives the death of their processes, but not a
power cut.
"""

import asyncio
import json
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.hosts import THIS_MACHINE, Host
from tests.servers.processes import end_process, start_watchdog

START_TIMEOUT = 30.0
_TRIES = 4

# When the tests' process has let go of it, nothing may stay.
WATCHDOG = """
read -r _
for file in "$1"/*.pid; do [ -e "$file" ] && kill -9 "$(cat "$file")"; done
rm -rf -- "$1"
"""


@dataclass(frozen=True)
class NatsOptions:
    """How a server is set up. `authorization` and `tls` are blocks of its configuration file."""

    jetstream: bool = True
    authorization: str = ""
    tls: str = ""
    sync_interval: str = ""


@dataclass
class _Node:
    """One server of one or several, on its host; `routes` lead to all nodes of its cluster."""

    name: str
    directory: Path
    options: NatsOptions
    host: Host
    port: int
    route: str
    routes: Sequence[str]
    _process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self._monitor_port = self.host.choose_port()
        self._monitor = f"http://127.0.0.1:{self.host.reach(self._monitor_port)}/healthz"

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def spawn(self) -> None:
        configuration = self.directory / f"{self.name}.conf"
        configuration.write_text(self._build_configuration())
        with (self.directory / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                **self.host.build_call([_find_program(), "--config", configuration]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,
            )
        self._pid_file.write_text(str(self._process.pid))

    def end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            end_process(process, how)
            self._pid_file.unlink()

    def is_healthy(self) -> bool:
        """Whether it takes connections and its JetStream, where it has one, is ready. Raises where it has ended."""
        if self._process is None or self._process.poll() is not None:
            raise EndedAtStart(f"NATS did not start:\n{self.read_log()}")
        try:
            with urllib.request.urlopen(self._monitor, timeout=1) as answer:
                return bool(json.load(answer)["status"] == "ok")
        except (urllib.error.URLError, OSError, ValueError):
            return False

    def read_log(self) -> str:
        return (self.directory / f"{self.name}.log").read_text(errors="replace")[-4000:]

    @property
    def _pid_file(self) -> Path:
        return self.directory / f"{self.name}.pid"

    def _build_configuration(self) -> str:
        options = self.options
        lines = [
            f"server_name: {self.name}",
            f"listen: {self.host.address}:{self.port}",
            f"http: {self.host.address}:{self._monitor_port}",
        ]
        if options.jetstream:
            sync = f", sync_interval: {options.sync_interval}" if options.sync_interval else ""
            store = self.directory / self.name
            lines.append(f'jetstream {{ store_dir: "{store}", max_mem: 64MB, max_file: 1GB{sync} }}')
        if self.route:
            routes = ", ".join(f'"nats-route://{each}"' for each in self.routes)
            lines.append(f"cluster {{ name: carehook, listen: {self.route}, routes: [{routes}] }}")
        lines += [block for block in (options.authorization, options.tls) if block]
        return "\n".join(lines)


class EndedAtStart(RuntimeError):
    """A server that was started has ended; its log says why."""


def _find_program() -> Path:
    return Path(sysconfig.get_path("scripts")) / "nats-server"


class NatsServers:
    """Some servers with a directory of their own; `with` starts them, and removes all of it at the end.

    Each is on one of `hosts`, by default all on this machine.
    """

    def __init__(self, count: int = 1, options: NatsOptions | None = None, hosts: Sequence[Host] | None = None) -> None:
        self._count = count
        self._hosts = hosts or [THIS_MACHINE] * count
        self._options = options or NatsOptions()

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix="carehook-nats-"))
        self._nodes = self._build_nodes()
        self._watchdog = start_watchdog(WATCHDOG, self._directory)
        try:
            self._start_first()
        except BaseException:
            self._remove()
            raise
        return self

    def _build_nodes(self) -> list[_Node]:
        routes = [f"{host.address}:{host.choose_port()}" for host in self._hosts] if self._count > 1 else []
        return [
            _Node(f"n{number}", self._directory, self._options, host, host.choose_port(), route, routes)
            for number, (host, route) in enumerate(zip(self._hosts, routes or [""], strict=True))
        ]

    def _start_first(self) -> None:
        """Start all, on other ports where somebody has taken one meanwhile, as any connection of anybody's may."""
        for _ in range(_TRIES):
            try:
                self.start()
            except EndedAtStart:
                self.kill()
                self.forget()
                self._nodes = self._build_nodes()
            else:
                return
        self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    @property
    def url(self) -> str:
        """The addresses of all servers, as `CAREHOOK_QUEUE_URL` takes them."""
        return ",".join(self.url_of(number) for number in range(self._count))

    def url_of(self, number: int = 0, *, credentials: str = "", scheme: str = "nats") -> str:
        """The address of one server, with `user:password` or a token where it asks for them."""
        node = self._nodes[number]
        return f"{scheme}://{credentials}{'@' if credentials else ''}{node.host.address}:{node.port}"

    def start(self, *numbers: int) -> None:
        """Start those of the servers that do not run, or all; returns when they serve."""
        started = [self._nodes[number] for number in numbers or range(self._count)]
        for node in started:
            if not node.is_running:
                node.spawn()
        deadline = time.monotonic() + START_TIMEOUT
        while not all(node.is_healthy() for node in self._nodes if node.is_running or node in started):
            if not all(node.is_running for node in started):
                raise EndedAtStart(self._describe("NATS ended as it was started:"))
            if time.monotonic() > deadline:
                raise RuntimeError(self._describe("NATS is not ready:"))
            time.sleep(0.02)

    def _describe(self, what: str) -> str:
        return "\n".join([what, *(node.read_log() for node in self._nodes)])

    def stop(self, *numbers: int) -> None:
        """Stop some of the servers, or all, as an operator would."""
        self._end(numbers, signal.SIGTERM)

    def kill(self, *numbers: int) -> None:
        """End some of the servers, or all, without warning."""
        self._end(numbers, signal.SIGKILL)

    def forget(self) -> None:
        """Remove all that the servers, none of which may run, have stored."""
        for node in self._nodes:
            shutil.rmtree(self._directory / node.name, ignore_errors=True)

    async def restart(self) -> None:
        """Start what does not run, while the event loop goes on."""
        await asyncio.to_thread(self.start)

    def _end(self, numbers: tuple[int, ...], how: signal.Signals) -> None:
        for number in numbers or range(self._count):
            self._nodes[number].end(how)

    def _remove(self) -> None:
        self.kill()
        self._watchdog.communicate()
