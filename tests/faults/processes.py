"""Processes of Carehook that end in every way, and are begun again; and waiting for what they do."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
"""Where this checkout is."""

_PATIENCE: Final = 200.0
"""Seconds after which a wait fails. It is never reached unless something is broken."""


class Process:
    """A process of Carehook, which may end and be begun again on the same settings and port."""

    def __init__(self, call: Mapping[str, Any], log_path: Path) -> None:
        self._call = call
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin it, unless it runs."""
        if not self.is_running():
            with self._log_path.open("ab") as log:
                self._process = subprocess.Popen(
                    **self._call, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, cwd=ROOT
                )

    def is_running(self) -> bool:
        """Whether it has been begun and has not ended."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """End it without warning."""
        self._signal(SIGKILL)
        if self._process is not None:
            self._process.wait()

    def freeze(self) -> None:
        """Stop it where it is, until `thaw`."""
        self._signal(SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(SIGCONT)

    def drain(self) -> int:
        """End it as an operator would; its exit code."""
        assert self._process is not None
        self._signal(SIGTERM)
        return self._process.wait(_PATIENCE)

    def count_in_log(self, field: str, value: str) -> int:
        """How many lines of its log have a field with that value."""
        return self._log_path.read_text(errors="replace").count(f'"{field}":"{value}"')

    def is_connected_from(self, port: int) -> bool:
        """Whether a TCP connection of its own has this port on its side."""
        if not self.is_running() or self._process is None:
            return False
        here = Path(f"/proc/{self._process.pid}")
        rows = [line.split() for line in (here / "net/tcp").read_text().splitlines()[1:]]
        inodes = {row[9] for row in rows if int(row[1].partition(":")[2], 16) == port}
        return any(f"socket:[{inode}]" in _list_files(here) for inode in inodes)

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)


def _list_files(process: Path) -> set[str]:
    found = set()
    for descriptor in (process / "fd").iterdir():
        # It may have been closed meanwhile.
        with contextlib.suppress(FileNotFoundError):
            found.add(str(descriptor.readlink()))
    return found


def wait_until(look: Callable[[], Any], what: str, explain: Callable[[], object] = str) -> Any:
    """What `look` finds, once it finds something. Where it never does, `explain` may say why."""
    deadline = time.monotonic() + _PATIENCE
    while not (found := look()):
        assert time.monotonic() < deadline, f"no {what} within {_PATIENCE:g} s {explain()}"
        time.sleep(0.05)
    return found
