"""What all receivers have in common: a socket, a thread, and a record of who came."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

_PATIENCE = 20.0
"""Seconds after which a wait fails. It is never reached unless something is broken."""


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A request as it came over the wire: `head` is every byte before the body, `headers` has lower-case names."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    head: bytes
    connection: int
    """The number of the connection that it came on, from 1."""
    received_at: datetime = field(default_factory=lambda: datetime.now(UTC))


class Receiver(ABC):
    """A server that accepts connections on `port` of `host` (0: a free one), and leaves what is said to subclasses."""

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.host = host
        self.port = port
        self.requests: list[ReceivedRequest] = []
        self.connections = 0
        self.disconnections = 0
        """Connections that are over, whoever ended them."""
        self._tls = tls
        self._changed = threading.Condition()

    @property
    def url(self) -> str:
        """Where it listens, by address."""
        return self.url_for(f"[{self.host}]" if ":" in self.host else self.host)

    def url_for(self, host: str, path: str = "/hook") -> str:
        """Where it listens, if `host` is a name of its address."""
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}{path}"

    @abstractmethod
    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection; it is closed afterwards. Whatever the client does may be raised."""

    async def receive(self, reader: asyncio.StreamReader) -> ReceivedRequest:
        """Read and record the next request. Raises `IncompleteReadError` where the client has no more."""
        connection = self.connections
        head = await reader.readuntil(b"\r\n\r\n")
        request_line, *lines = head.decode("latin-1").strip("\r\n").split("\r\n")
        method, path, _ = request_line.split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        request = ReceivedRequest(method, path, headers, body, head, connection)
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        return request

    async def wait_for_requests(self, count: int = 1) -> list[ReceivedRequest]:
        """The requests so far, once there are `count` of them."""
        await self._wait(lambda: len(self.requests) >= count, f"{count} requests")
        return self.requests

    async def wait_for_disconnections(self, count: int = 1) -> None:
        """Return once `count` connections are over."""
        await self._wait(lambda: self.disconnections >= count, f"{count} disconnections")

    async def _wait(self, predicate: Callable[[], bool], what: str) -> None:
        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(predicate, _PATIENCE)

        if not await asyncio.to_thread(wait):
            raise AssertionError(
                f"no {what} within {_PATIENCE:g} s, but {len(self.requests)} requests on {self.connections} "
                f"connections, of which {self.disconnections} are over"
            )

    def open_listener(self) -> socket.socket:
        """The socket that it listens on."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        return socket.create_server((self.host, self.port), family=family)

    def start(self) -> None:
        """Begin to listen."""
        self._socket = self.open_listener()
        self.port = self._socket.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _loop, _context: None)  # a refused handshake is what many tests want
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Drop every connection and stop to listen. Once is enough, twice does no harm."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(_PATIENCE)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, sock=self._socket, ssl=self._tls)
        await self._stopping.wait()
        server.close()
        conversations = asyncio.all_tasks() - {asyncio.current_task()}
        for conversation in conversations:
            conversation.cancel()
        await asyncio.gather(*conversations, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self.converse(reader, writer)
        except (OSError, EOFError, asyncio.CancelledError):  # the client went, or the test is over
            writer.transport.abort()
        finally:
            writer.close()
            with self._changed:
                self.disconnections += 1
                self._changed.notify_all()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)
