"""The service of the demo: a real `carehook serve` on a fresh embedded store, and a client of its API."""

from __future__ import annotations

import http.client
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from carehook.cli.failures import CommandFailed

START_SECONDS: Final = 60.0
_END_SECONDS: Final = 30.0
_COMMAND: Final = (sys.executable, "-m", "carehook.cli")
_LOG_LINES_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Service:
    """A Carehook that runs: where its API is, its first operator token, and the environment of its commands."""

    url: str
    operator_token: str = field(repr=False)
    environment: Mapping[str, str]

    def run(self, *arguments: str) -> list[str]:
        """Run `carehook ARGUMENTS` beside the service; the lines it printed."""
        command = [*_COMMAND, *arguments]
        done = subprocess.run(command, env=dict(self.environment), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CommandFailed(f"carehook {' '.join(arguments)} failed: {done.stderr}")
        return done.stdout.splitlines()

    def call(
        self, token: str, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Call the API; its answer. Raises `CommandFailed` with the API's own words where it refuses."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=START_SECONDS)
        try:
            content = None if body is None else orjson.dumps(body)
            sent = {"authorization": f"Bearer {token}", "content-type": "application/json", **(headers or {})}
            connection.request(method, path, content, sent)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise CommandFailed(f"the service did not answer {method} {path} ({type(error).__name__})") from None
        finally:
            connection.close()
        if response.status >= 400:
            raise CommandFailed(f"the service answered {method} {path} with {response.status}: {_read_detail(answer)}")
        return orjson.loads(answer)


@contextmanager
def start_service(home: Path) -> Iterator[Service]:
    """`carehook serve` on a free port and a store in `home`, ended with the block. It may send to loopback by http."""
    environment = {
        "CAREHOOK_HOME": str(home / "store"),
        "CAREHOOK_HOST": "127.0.0.1",
        "CAREHOOK_PORT": "0",
        "CAREHOOK_ALLOW_HTTP": "true",
        "CAREHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
        "CAREHOOK_RETRY_SCHEDULE": "1,1",
        "CAREHOOK_DRAIN_NOTICE": "0",
    }
    log = home / "carehook.log"
    command = [*_COMMAND, "serve", "--json", "--until-stdin-closes"]
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,  # it ends when we do, however that comes
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C is for us; we tell the service
        ) as process,
    ):
        try:
            started = _read_announcement(process, log)
            yield Service(started["url"], started["first_operator_token"], environment)
        finally:
            _end(process)


def _read_announcement(process: subprocess.Popen[bytes], log: Path) -> Any:
    output = process.stdout
    line = output.readline() if output and select.select([output], [], [], START_SECONDS)[0] else b""
    if not line:
        last = log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
        raise CommandFailed(f"the service did not start: {' '.join(last) or 'it said nothing'}")
    return orjson.loads(line)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def _read_detail(answer: bytes) -> str:
    try:
        return str(orjson.loads(answer)["detail"])
    except (ValueError, KeyError, TypeError):
        return "no reason given"
