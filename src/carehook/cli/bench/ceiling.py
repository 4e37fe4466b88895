"""The ceiling: what the HTTP client does alone against the same receiver. No sender can do better."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from carehook.cli.bench.bodies import BodySize, build_event
from carehook.cli.bench.load import run_callers
from carehook.cli.bench.processes import BenchmarkFailed
from carehook.cli.bench.receiving import Receiver

REQUESTS: Final = 20_000


class Height(NamedTuple):
    """Requests per second, and the seconds of a core that the client spent on each."""

    rate: float
    cpu: float


class Ceiling(NamedTuple):
    """For which bodies, and whether with TLS."""

    size: BodySize = BodySize.USUAL
    tls: bool = False

    @property
    def name(self) -> str:
        """What people call it: "2 KB, TLS"."""
        return f"{self.size}, TLS" if self.tls else str(self.size)

    async def measure(self, receiver: Receiver, requests: int) -> Height:
        """What 64 callers reach. Connections are opened before."""
        await self._run(receiver, requests // 10 + 1)
        begun = time.process_time()
        rate = requests / await self._run(receiver, requests)
        return Height(rate, (time.process_time() - begun) / requests)

    async def _run(self, receiver: Receiver, requests: int) -> float:
        body, url = build_event(self.size), receiver.url("ceiling", tls=self.tls)

        async def send() -> None:
            response = await receiver.client.post(url).headers(_HEADERS).body_bytes(body).build().send()
            if response.status != 200:
                raise BenchmarkFailed(f"The bare receiver answered {response.status}.")

        return await run_callers(send, requests)


# As many headers as Carehook sends, of the same lengths.
_HEADERS: Final = {
    "content-type": "application/json",
    "user-agent": "ceiling",
    "x-webhook-signature": "v" * 43,
    "webhook-id": "evt_" + "0" * 32,
    "webhook-timestamp": "1700000000",
    "webhook-signature": "v1," + "0" * 44,
}
