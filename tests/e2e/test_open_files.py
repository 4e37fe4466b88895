"""Requests in flight are sockets: Carehook may open as many as its hard limit says, and blames nobody for a lack."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.receivers import Answer, RecordingReceiver
from tests.servers.installation import Installation

OUT_OF_FILES = """
import asyncio, os, resource, sys
from ipaddress import ip_network
from carehook.dispatch.addresses import AddressRules
from carehook.dispatch.sender import GuardedSender
from carehook.exchange import Request, Responded

def open_all_files():
    try:
        while True:
            os.open("/dev/null", os.O_RDONLY)
    except OSError:
        pass

async def main():
    sender = GuardedSender(AddressRules([ip_network("127.0.0.0/8")], allow_http=True))
    request = Request("POST", sys.argv[1], {}, b"{}")
    # The client is made with the first request; its connections end with each response, sooner or later.
    print(await sender.send(request))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    for _ in range(50):
        open_all_files()
        outcome = await sender.send(request)
        if not isinstance(outcome, Responded):
            break
        await asyncio.sleep(0.05)
    print(outcome)

asyncio.run(main())
"""


@contextmanager
def soft_limit(files: int) -> Iterator[int]:
    """What is started meanwhile begins with this soft limit of open files; the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    try:
        yield hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def read_soft_limit(pid: int) -> str:
    """The soft limit of open files of a process, as proc(5) has it."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("Max open files"))
    return line.split()[3]


def test_a_service_opens_as_many_files_as_it_is_allowed(tmp_path: Path) -> None:
    carehook = Installation(tmp_path)
    with soft_limit(1024) as hard, carehook.start() as service:
        assert read_soft_limit(service.process.pid) == str(hard)


def test_a_receiver_is_not_blamed_for_want_of_descriptors() -> None:
    with RecordingReceiver(then=Answer(204, headers={"connection": "close"})) as receiver:
        done = subprocess.run(
            [sys.executable, "-c", OUT_OF_FILES, receiver.url], capture_output=True, text=True, check=True, timeout=60
        )
    answered, out_of_files = done.stdout.splitlines()
    assert answered.startswith("Responded")
    assert out_of_files.startswith("Interrupted")
    assert "too many files open" in out_of_files
