"""A receiver that keeps everybody waiting, for requests that must be in flight while something happens."""

from __future__ import annotations

import asyncio
import threading

from tests.receivers.server import Receiver


class WaitingReceiver(Receiver):
    """Answers nobody until `gate` is set, then 204. Connections are kept alive."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await self.receive(reader)
            await asyncio.to_thread(self.gate.wait)
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            await writer.drain()

    def stop(self) -> None:
        self.gate.set()
        super().stop()
