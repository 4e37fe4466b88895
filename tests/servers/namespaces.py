"""Hosts of a test's own on this machine, each with an address, a network and disks, whose links can be cut.

They are Linux namespaces, made by `tests.servers.router`. Nothing is named and nothing is mounted where others see it,
so that nothing stays behind: namespaces end with the processes in them. Root is not needed where the kernel lets anyone
make a user namespace, and no program but those of util-linux, which no Linux is without.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.servers.hosts import Host

_ROOT: Final = Path(__file__).parents[2]
_PORT: Final = 8000
_IS_ROOT: Final = os.geteuid() == 0
_UNSHARE: Final = [
    "unshare",
    *([] if _IS_ROOT else ["--user", "--map-current-user", "--keep-caps"]),
    "--net",
    "--mount",
]
_NSENTER: Final = ["nsenter", *([] if _IS_ROOT else ["--user", "--preserve-credentials"]), "--net", "--mount"]


class Network:
    """Hosts around one router, while the block lasts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._relay = _Relay()

    def __enter__(self) -> Self:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            program = [sys.executable, "-m", "tests.servers.router", str(theirs.fileno())]
            self._process = subprocess.Popen([*_UNSHARE, *program], pass_fds=[theirs.fileno()], cwd=_ROOT)
        self._relay.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._relay.stop()
        self._control.close()
        self._process.wait()

    def add_host(self, name: str) -> NamespacedHost:
        """A host that reaches all others."""
        made, _ = self.ask("add_host", name)
        return NamespacedHost(self, self._relay, name, made["pid"], made["address"])

    def set_forwarding(self, forwarding: bool) -> None:
        """Part all hosts from each other, silently, or join them again."""
        self.ask("set_forwarding", forwarding)

    def ask(self, *command: object) -> tuple[Any, list[int]]:
        """What the router answers a command with, and descriptors. Raises RuntimeError where it could not do it."""
        message, descriptors = b"", list[int]()
        with self._lock, contextlib.suppress(OSError):
            self._control.send(json.dumps(command).encode())
            message, descriptors, _, _ = socket.recv_fds(self._control, 65536, 1)
        if not message:
            raise RuntimeError("the router has ended: does the kernel let this account make namespaces?")
        answer = json.loads(message)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"], descriptors


class NamespacedHost(Host):
    """A host of a network."""

    def __init__(self, network: Network, relay: _Relay, name: str, pid: int, address: str) -> None:
        self.address = address
        self._network = network
        self._relay = relay
        self._name = name
        self._pid = pid
        self._next_port = _PORT

    def build_call(self, command: Sequence[str | Path], account: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """See `Host`. Who enters must still be root, so the account is changed on the way in."""
        call = dict(account or {})
        call.pop("extra_groups", None)
        user, group = call.pop("user", None), call.pop("group", None)
        change = [] if user is None else [f"--setuid={user}", f"--setgid={group}"]
        return {"args": [*_NSENTER, f"--target={self._pid}", *change, "--", *(str(part) for part in command)], **call}

    def choose_port(self) -> int:
        """See `Host`. Nobody else is here."""
        self._next_port += 1
        return self._next_port

    def listen(self) -> socket.socket:
        """See `Host`."""
        listener = self.open_socket()
        listener.bind((self.address, 0))
        listener.listen(100)
        return listener

    def reach(self, port: int) -> int:
        """See `Host`. The way there goes by no link, so no cut is felt on it."""
        return self._relay.open(self, port)

    def find_path(self, path: Path) -> Path:
        """See `Host`."""
        return Path(f"/proc/{self._pid}/root{path}")

    def open_socket(self) -> socket.socket:
        """A TCP socket of this host."""
        _, (descriptor,) = self._network.ask("open_socket", self._name)
        return socket.socket(fileno=descriptor)

    def set_plugged(self, plugged: bool) -> None:
        """Cut the link, or heal it: who sends to this host is told that it cannot be reached."""
        self._network.ask("set_plugged", self._name, plugged)

    def set_swallowing(self, swallowing: bool) -> None:
        """Lose all that is sent to this host on its way, or no longer: nobody is told."""
        self._network.ask("set_swallowing", self._name, swallowing)

    def add_disk(self, path: Path, size: int, owner: int, group: int) -> Disk:
        """A disk of `size` bytes at a folder that is there; only this host sees what is on it."""
        self._network.ask("add_disk", self._name, str(path), size, owner, group)
        return Disk(self._network, self._name, path, size)


class Disk:
    """A disk that can be full."""

    def __init__(self, network: Network, host: str, path: Path, size: int) -> None:
        self._network = network
        self._command = ("resize_disk", host, str(path))
        self._size = size

    def fill(self) -> None:
        """Leave no room."""
        self._network.ask(*self._command, None)

    def free(self) -> None:
        """Give all room back."""
        self._network.ask(*self._command, self._size)


class _Relay:
    """Ports of this machine's loopback, each of which leads to a port of a host."""

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._thread.start()
        self._tasks: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def open(self, host: NamespacedHost, port: int) -> int:
        listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        listener.setblocking(False)
        local: int = listener.getsockname()[1]
        self._loop.call_soon_threadsafe(self._begin, self._accept(listener, host, port))
        return local

    def _begin(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket, host: NamespacedHost, port: int) -> None:
        with listener:
            while True:
                client, _ = await self._loop.sock_accept(listener)
                self._begin(self._carry(client, host, port))

    async def _carry(self, client: socket.socket, host: NamespacedHost, port: int) -> None:
        with client, host.open_socket() as server, contextlib.suppress(OSError):
            client.setblocking(False)
            server.setblocking(False)
            await self._loop.sock_connect(server, (host.address, port))
            ways = [asyncio.ensure_future(self._pump(*way)) for way in ((client, server), (server, client))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)

    async def _pump(self, source: socket.socket, target: socket.socket) -> None:
        while data := await self._loop.sock_recv(source, 65536):
            await self._loop.sock_sendall(target, data)

    async def _close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
