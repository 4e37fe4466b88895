"""Where a test's servers and processes run: on this machine, or on a host of its own (`tests.servers.namespaces`)."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.servers.ports import find_free_port


class Host:
    """This machine, which everything meets by the loopback address."""

    address: str = "127.0.0.1"

    def build_call(self, command: Sequence[str | Path], account: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The arguments of `subprocess.Popen` that run a command here, as `account` (also such arguments) if given."""
        return {"args": [str(part) for part in command], **(account or {})}

    def choose_port(self) -> int:
        """A TCP port that nothing listens on now."""
        return find_free_port()

    def listen(self) -> socket.socket:
        """A socket that listens on a port of `address`."""
        return socket.create_server((self.address, 0))

    def reach(self, port: int) -> int:
        """The port of this machine's loopback address by which the test itself reaches a port here."""
        return port

    def find_path(self, path: Path) -> Path:
        """Where the test itself finds a file that lies at `path` here."""
        return path


THIS_MACHINE: Final = Host()
