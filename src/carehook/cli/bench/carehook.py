"""A Carehook under measurement, through its API alone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from pyreqwest.client import Client

from carehook.cli.bench.processes import BenchmarkFailed
from carehook.cli.bench.usage import find_family, read_peak_memory

_CALLS_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Carehook:
    """Where the API is, an operator's token, and its processes by role."""

    url: str
    token: str = field(repr=False)
    processes: Mapping[str, int]
    worker_role: str
    client: Client

    async def make_organization(self, urls: Sequence[str]) -> Organization:
        """A new organization with an endpoint at each URL."""
        organization = await self.call("POST", "/v1/organizations", orjson.dumps({"name": "Benchmark"}), 201)
        path = f"/v1/organizations/{organization['id']}"
        permits = asyncio.Semaphore(_CALLS_AT_ONCE)

        async def register(url: str) -> str:
            async with permits:
                endpoint = await self.call("POST", f"{path}/endpoints", orjson.dumps({"url": url}), 201)
                return str(endpoint["id"])

        endpoint_ids = await asyncio.gather(*(register(url) for url in urls))
        return Organization(self, path, tuple(endpoint_ids))

    async def call(self, method: str, path: str, body: bytes, status: int) -> Any:
        """What the API answers; it must be `status`."""
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        request = self.client.request(method, f"{self.url}{path}").headers(headers).body_bytes(body).build()
        response = await request.send()
        answer = bytes(await response.bytes())
        if response.status != status:
            said = answer.decode(errors="replace")[:300]
            raise BenchmarkFailed(f"Carehook answered {response.status} to {method} {path}: {said}")
        return orjson.loads(answer) if answer else None

    def read_peak_memory(self) -> float:
        """The most that one of the processes that deliver ever held, in MiB."""
        return max(map(read_peak_memory, find_family(self.processes[self.worker_role]))) / 2**20


@dataclass(frozen=True, slots=True)
class Organization:
    """An organization that events are published to."""

    carehook: Carehook
    path: str
    endpoint_ids: tuple[str, ...]

    async def publish(self, event: bytes) -> str:
        """Publish one event; its id."""
        answer = await self.carehook.call("POST", f"{self.path}/events", event, 202)
        return str(answer["id"])

    async def publish_batch(self, batch: bytes) -> None:
        """Publish a batch that is written already."""
        await self.carehook.call("POST", f"{self.path}/events/batch", batch, 202)

    async def delete_endpoints(self) -> None:
        """Delete all endpoints, which cancels what is due to them."""
        for endpoint_id in self.endpoint_ids:
            await self.carehook.call("DELETE", f"/v1/endpoints/{endpoint_id}", b"", 204)
