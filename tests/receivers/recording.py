"""A receiver that behaves well, remembers every request, and answers as the test says."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.receivers.server import Receiver


@dataclass(frozen=True, slots=True)
class Answer:
    """What to answer a request with. `content-length` is added."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def encode(self) -> bytes:
        """The answer as HTTP/1.1."""
        length = {} if self.status == 204 else {"content-length": str(len(self.body))}
        lines = [f"HTTP/1.1 {self.status} Answer", *(f"{k}: {v}" for k, v in {**self.headers, **length}.items())]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + self.body


class RecordingReceiver(Receiver):
    """Answers with `answers` (an `Answer`, or a status alone), one a request in order of arrival, then with `then`.

    `answers` can be extended while it runs. Connections are kept alive.
    """

    def __init__(
        self,
        *answers: Answer | int,
        then: Answer | int = 200,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(host=host, port=port, tls=tls)
        self.answers: deque[Answer | int] = deque(answers)
        self.then = then

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await self.receive(reader)
            answer = self.answers.popleft() if self.answers else self.then
            writer.write((Answer(answer) if isinstance(answer, int) else answer).encode())
            await writer.drain()
