"""A Carehook as whoever runs it has it: a home folder, settings in the environment, and the command `carehook`.

Every process is a real one, of the console script, with no environment but the settings it is given.
"""

from __future__ import annotations

import http.client
import json
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

COMMAND = str(Path(sys.executable).with_name("carehook"))

_PATIENCE = 60.0
"""Seconds after which a wait fails. It is never reached unless something is broken."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API answered."""

    status: int
    body: Any


@dataclass(frozen=True, slots=True)
class Service:
    """A `carehook serve` or `carehook api` that runs."""

    url: str
    token: str | None
    """The first operator token, where this start printed it."""
    process: subprocess.Popen[bytes]
    log_path: Path

    def call(self, method: str, path: str, body: object = None, *, token: str | None = None) -> Answer:
        """Call the API, as an operator unless another token is given."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=_PATIENCE)
        try:
            headers = {"authorization": f"Bearer {token or self.token}", "content-type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return Answer(response.status, json.loads(response.read()))
        finally:
            connection.close()

    def read_log(self) -> list[dict[str, Any]]:
        """What was logged until now; every line must be JSON."""
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]

    def wait_for_log(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """The first `count` lines of an event, once there are so many."""
        found: list[dict[str, Any]] = eventually(
            lambda: _first(count, [each for each in self.read_log() if each["event"] == event]), event
        )
        return found

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self.process.wait(_PATIENCE)


class Installation:
    """Settings and a home folder; commands and services that share them."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.environment: Mapping[str, str] = {
            "CAREHOOK_HOME": str(self.home),
            "CAREHOOK_PORT": "0",
            "CAREHOOK_DRAIN_NOTICE": "0",
            "CAREHOOK_ALLOW_HTTP": "true",
            "CAREHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
            **settings,
        }

    def run(
        self, *arguments: str, stdin: str | None = None, code: int = 0, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `carehook ARGUMENTS` to its end; it must exit with `code`."""
        done = subprocess.run(
            [COMMAND, *arguments],
            env={**self.environment, **settings},
            input=stdin or "",
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE,
        )
        assert done.returncode == code, f"{arguments} exited with {done.returncode}: {done.stdout}{done.stderr}"
        return done

    def read(self, *arguments: str, stdin: str | None = None) -> Any:
        """What `carehook ARGUMENTS --json` prints."""
        return json.loads(self.run(*arguments, "--json", stdin=stdin).stdout)

    @contextmanager
    def start(self, *arguments: str, **settings: str) -> Iterator[Service]:
        """`carehook ARGUMENTS` (by default `serve`) while the block lasts, once it says that it runs."""
        arguments = arguments or ("serve",)
        number = sum(1 for _ in self.folder.glob("*.log"))
        log_path = self.folder / f"{number}.log"
        listens = arguments[0] in ("serve", "api")
        with (
            log_path.open("wb") as log,
            subprocess.Popen(
                [COMMAND, *arguments, *(["--json"] if listens else [])],
                env={**self.environment, **settings},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            ) as process,
        ):
            try:
                started = _read_announcement(process, log_path) if listens else {}
                yield Service(started.get("url", ""), started.get("first_operator_token"), process, log_path)
            finally:
                process.terminate()
                try:
                    process.wait(_PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()


def eventually(look: Callable[[], Any], what: str) -> Any:
    """What `look` finds, once it finds something."""
    deadline = time.monotonic() + _PATIENCE
    while not (found := look()):
        assert time.monotonic() < deadline, f"no {what} within {_PATIENCE:g} s"
        time.sleep(0.02)
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs, of whomever it is a child."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def _first(count: int, found: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    return found[:count] if len(found) >= count else None


def _read_announcement(process: subprocess.Popen[bytes], log_path: Path) -> Any:
    output = process.stdout
    line = output.readline() if output and select.select([output], [], [], _PATIENCE)[0] else b""
    assert line, f"it did not start: {log_path.read_text()}"
    return json.loads(line)
