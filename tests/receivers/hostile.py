"""Receivers that break the rules, by the name of what they do."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import Awaitable, Callable

from tests.receivers.server import Receiver

_ENDLESS = 64 * 2**20
"""Bytes after which an endless body ends all the same, so that a broken client fails its test and not the machine."""

_OK = b"HTTP/1.1 200 OK\r\n"

GZIP_BOMB = gzip.compress(bytes(2**20), mtime=0)
"""A MiB of zeros in a KiB."""

Conversation = Callable[[Receiver, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _hang_before_headers(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await receiver.receive(reader)
    await reader.read()


async def _hang_after_headers(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await receiver.receive(reader)
    writer.write(_OK + b"content-length: 100\r\n\r\nbut only this")
    await reader.read()


async def _hang_in_handshake(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def _trickle_body(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await receiver.receive(reader)
    writer.write(_OK + b"content-length: 1000000\r\n\r\n")
    while not reader.at_eof():
        writer.write(b".")
        await writer.drain()
        await asyncio.sleep(0.01)


async def _endless_body(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await receiver.receive(reader)
    writer.write(_OK + b"content-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(_ENDLESS // 4096):
        writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        await writer.drain()
    await reader.read()


async def _drop_at_once(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def _drop_before_headers(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await receiver.receive(reader)


async def _drop_mid_headers(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await receiver.receive(reader)
    writer.write(_OK + b"content-le")
    await writer.drain()


async def _drop_mid_body(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await receiver.receive(reader)
    writer.write(_OK + b"content-length: 100\r\n\r\nbut only this")
    await writer.drain()


async def _redirect(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await receiver.receive(reader)
        location = receiver.url_for(receiver.host, "/elsewhere").encode()
        writer.write(b"HTTP/1.1 307 Temporary Redirect\r\ncontent-length: 0\r\nlocation: " + location + b"\r\n\r\n")
        await writer.drain()


async def _garbage(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await receiver.receive(reader)
    writer.write(b"\x00\xff\xfe this is not HTTP\r\n\r\n")
    await reader.read()


async def _garbage_at_once(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    await reader.read()


async def _garbage_body(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await receiver.receive(reader)
    writer.write(_OK + b"transfer-encoding: chunked\r\n\r\nthis is no chunk size\r\n")
    await reader.read()


async def _garbage_header(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # Its answer is complete, so the next request may come on the same connection.
    while True:
        await receiver.receive(reader)
        writer.write(_OK + b"retry-after: \xff\xfe\r\ncontent-type: \xff\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()


async def _huge_header(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await receiver.receive(reader)
    writer.write(_OK + b"x-huge: " + b"x" * 2**21 + b"\r\ncontent-length: 0\r\n\r\n")
    await reader.read()


async def _many_headers(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await receiver.receive(reader)
    writer.write(_OK + b"".join(b"x-%d: x\r\n" % number for number in range(10_000)) + b"content-length: 0\r\n\r\n")
    await reader.read()


async def _gzip_bomb(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await receiver.receive(reader)
        writer.write(_OK + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(GZIP_BOMB) + GZIP_BOMB)
        await writer.drain()


HOSTILITIES: dict[str, Conversation] = {
    "hang_before_headers": _hang_before_headers,
    "hang_after_headers": _hang_after_headers,
    "hang_in_handshake": _hang_in_handshake,
    "trickle_body": _trickle_body,
    "endless_body": _endless_body,
    "drop_at_once": _drop_at_once,
    "drop_before_headers": _drop_before_headers,
    "drop_mid_headers": _drop_mid_headers,
    "drop_mid_body": _drop_mid_body,
    "redirect": _redirect,
    "garbage": _garbage,
    "garbage_at_once": _garbage_at_once,
    "garbage_body": _garbage_body,
    "garbage_header": _garbage_header,
    "huge_header": _huge_header,
    "many_headers": _many_headers,
    "gzip_bomb": _gzip_bomb,
}
"""What a receiver can do, by name. `hang_in_handshake` is for an https URL on a receiver without TLS."""


class HostileReceiver(Receiver):
    """Does what `hostility`, a name in `HOSTILITIES`, says, on every connection."""

    def __init__(self, hostility: str, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        super().__init__(host=host, tls=tls)
        self._conversation = HOSTILITIES[hostility]

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._conversation(self, reader, writer)
