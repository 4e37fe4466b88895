"""A bare HTTP receiver in a process of its own: it notes when each request was answered, and answers as its path says.

It does as little as a receiver can, so that what is measured is the sender. A path is `/DELAY/STATUS/NAME`: the answer
has this status and comes after so many milliseconds; `/never/…` is never answered. Control requests are
`GET /progress`, `GET /receipts` and `POST /reset`, which forgets. Instants are nanoseconds of CLOCK_MONOTONIC, which
all processes of a machine share. The ports, `{"http": …, "https": …}`, are printed once it listens; it ends when its
standard input does.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, NamedTuple, cast

import orjson
import uvloop

HOSTS: Final = ("127.0.0.1", *(f"127.0.1.{number}" for number in range(1, 101)))
"""The addresses that it listens on: of the first, which the certificate is for, and of a hundred other hosts."""

_BACKLOG: Final = 4096
_CONTROL: Final = (b"GET /progress ", b"GET /receipts ", b"POST /reset ")


@dataclass(slots=True)
class Receipts:
    """How many requests were answered, when each pair of path and `webhook-id` was first, and when the last new one."""

    requests: int = 0
    first: dict[bytes, int] = field(default_factory=dict)
    last: int = 0

    def note(self, key: bytes, now: int) -> None:
        """Count a request; `key` is its path, a space and its `webhook-id`."""
        self.requests += 1
        if key not in self.first:
            self.first[key] = now
            self.last = now

    def answer(self, control: bytes) -> bytes:
        """The body of the answer to a control request."""
        if control == b"GET /progress ":
            return orjson.dumps({"requests": self.requests, "different": len(self.first), "last": self.last})
        if control == b"GET /receipts ":
            return orjson.dumps({key.decode(): instant for key, instant in self.first.items()})
        self.requests, self.last = 0, 0
        self.first.clear()
        return b"{}"


class Behaviour(NamedTuple):
    """How a path is answered: when, in seconds, and with what; None is never."""

    delay: float
    answer: bytes | None


def read_behaviour(path: bytes) -> Behaviour:
    """What a path asks for. Raises `ValueError` where it is not one of ours."""
    _, delay, status, *_ = path.split(b"/")
    if delay == b"never":
        return Behaviour(0, None)
    phrase = HTTPStatus(int(status)).phrase.encode()
    return Behaviour(int(delay) / 1000, b"HTTP/1.1 %s %s\r\ncontent-length: 0\r\n\r\n" % (status, phrase))


class _Connection(asyncio.Protocol):
    def __init__(self, receipts: Receipts, behaviours: dict[bytes, Behaviour]) -> None:
        self._receipts = receipts
        self._behaviours = behaviours
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's in all but their class.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._received[: end + 2])
            length = int(_find(head, b"content-length") or b"0")
            if len(self._received) < end + 4 + length:
                return
            del self._received[: end + 4 + length]
            self._take(head)

    def _take(self, head: bytes) -> None:
        if head.startswith(_CONTROL):
            control = next(each for each in _CONTROL if head.startswith(each))
            body = self._receipts.answer(control)
            self._write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            return
        path = head.split(b" ", 2)[1]
        key = b"%s %s" % (path, _find(head, b"webhook-id") or b"")
        behaviour = self._behaviours.get(path)
        if behaviour is None:
            behaviour = self._behaviours[path] = read_behaviour(path)
        if behaviour.answer is None:
            return
        if behaviour.delay:
            asyncio.get_running_loop().call_later(behaviour.delay, self._receive, key, behaviour.answer)
        else:
            self._receive(key, behaviour.answer)

    def _receive(self, key: bytes, answer: bytes) -> None:
        self._receipts.note(key, time.monotonic_ns())
        self._write(answer)

    def _write(self, answer: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(answer)


def _find(head: bytes, name: bytes) -> bytes | None:
    start = head.find(b"\r\n" + name + b": ")
    if start < 0:
        start = head.lower().find(b"\r\n" + name + b": ")
    if start < 0:
        return None
    start += len(name) + 4
    return head[start : head.index(b"\r\n", start)]


async def _listen(make_connection: Callable[[], _Connection], tls: ssl.SSLContext | None) -> int:
    """Listen on one port of all hosts; which."""
    loop, port = asyncio.get_running_loop(), 0
    for host in HOSTS:
        server = await loop.create_server(make_connection, host, port, ssl=tls, backlog=_BACKLOG)
        port = server.sockets[0].getsockname()[1]
    return port


async def _serve(certificate: str) -> None:
    receipts, behaviours = Receipts(), dict[bytes, Behaviour]()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    ports = {}
    for scheme, tls in (("http", None), ("https", context)):
        ports[scheme] = await _listen(lambda: _Connection(receipts, behaviours), tls)
    sys.stdout.write(orjson.dumps(ports).decode() + "\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))
