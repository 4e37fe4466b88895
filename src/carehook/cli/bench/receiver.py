"""A bare HTTP receiver in a process of its own: it notes when each `webhook-id` arrived first, and answers 200.

It does as little as a receiver can, so that what is measured is the sender. Control requests: `GET /receipts` answers
with the number of requests and the receipts, in nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share;
`POST /reset` forgets them.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass, field
from typing import cast

import orjson
import uvloop

_OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


@dataclass(slots=True)
class Receipts:
    """What arrived: how many requests, and when each id came first."""

    requests: int = 0
    first: dict[str, int] = field(default_factory=dict)


class _Connection(asyncio.Protocol):
    def __init__(self, receipts: Receipts) -> None:
        self._receipts = receipts
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
            self._answer(head)

    def _answer(self, head: bytes) -> None:
        if self._transport is None:
            return
        if head.startswith(b"GET /receipts "):
            body = orjson.dumps({"requests": self._receipts.requests, "first": self._receipts.first})
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            return
        if head.startswith(b"POST /reset "):
            self._receipts.requests = 0
            self._receipts.first.clear()
        else:
            self._receipts.requests += 1
            if message_id := _find(head, b"webhook-id"):
                self._receipts.first.setdefault(message_id.decode(), time.monotonic_ns())
        self._transport.write(_OK)


def _find(head: bytes, name: bytes) -> bytes | None:
    start = head.find(b"\r\n" + name + b": ")
    if start < 0:
        start = head.lower().find(b"\r\n" + name + b": ")
    if start < 0:
        return None
    start += len(name) + 4
    return head[start : head.index(b"\r\n", start)]


async def _serve() -> None:
    receipts = Receipts()
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(receipts), "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    # Standard input ends with the process that started this one, however that one ended.
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(_serve())
