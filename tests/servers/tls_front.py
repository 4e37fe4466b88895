"""TLS in front of a PostgreSQL, as the one out of the wheel is built without it: what reaches it came encrypted.

It speaks as PostgreSQL does (protocol, "SSL Session Encryption") and hands on what it decrypts. Whoever begins in clear
is shown the door.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from types import TracebackType
from typing import Final, Self

_ADDRESS: Final = "127.0.0.1"
_TLS_REQUEST: Final = bytes.fromhex("00000008 04d2162f")


class TlsFront:
    """Takes connections on a port of its own, with `context`, for the server on `server_port`."""

    def __init__(self, server_port: int, context: ssl.SSLContext) -> None:
        self._server_port = server_port
        self._context = context
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._is_ready = threading.Event()
        self.encrypted_ports: set[int] = set()
        """The ports by which PostgreSQL knows the connections that came encrypted."""
        self.in_clear = 0
        """How many connections began in clear."""

    def __enter__(self) -> Self:
        self._thread.start()
        self._is_ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        server = await asyncio.start_server(self._take, _ADDRESS, 0)
        self.port: int = server.sockets[0].getsockname()[1]
        self._is_ready.set()
        async with server:
            await self._over.wait()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client that does not trust the certificate, or has gone, is nobody's fault here.
        with contextlib.suppress(OSError, EOFError), contextlib.closing(writer):
            if await reader.readexactly(len(_TLS_REQUEST)) != _TLS_REQUEST:
                self.in_clear += 1
                return
            writer.write(b"S")
            await writer.start_tls(self._context)
            await self._hand_on(reader, writer)

    async def _hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(_ADDRESS, self._server_port)
        self.encrypted_ports.add(to_server.get_extra_info("sockname")[1])
        with contextlib.closing(to_server):
            await asyncio.gather(_pump(reader, to_server), _pump(from_server, writer))


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    # The other direction ends with this one.
    target.close()
