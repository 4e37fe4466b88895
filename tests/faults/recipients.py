"""An organization with endpoints whose receivers take most of what they get, and keep of it only what accounts need."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Sequence
from typing import Any, Final

import requests

from carehook import Webhook, WebhookVerificationError
from tests.faults.accounts import Recipient
from tests.receivers import Answer, ReceivedRequest, Receiver
from tests.servers.hosts import Host

NEVER: Final = 10**9

_TIMEOUT: Final = 30.0
"""Seconds."""


class FailingReceiver(Receiver):
    """Takes all but every `fails_every`th request, each after `seconds`, and remembers which it took."""

    def __init__(self, host: Host, fails_every: int, seconds: float) -> None:
        super().__init__(host=host.address)
        self._stands_on = host
        self._fails_every = fails_every
        self._seconds = seconds
        self._webhook: Webhook | None = None
        self.arrived: list[tuple[str, bytes]] = []
        self.taken: list[str] = []
        self.refused: list[str] = []

    def open_listener(self) -> socket.socket:
        """See `Receiver`."""
        return self._stands_on.listen()

    def expect(self, signature_value: str, signing_secret: str) -> None:
        """Say what every request must prove."""
        self._webhook = Webhook(signature_value=signature_value, signing_secret=signing_secret)

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await self.receive(reader)
            self.requests.clear()
            fails = not self._keep(request)
            # So that there is always something in flight that a fault can meet.
            await self.wait_before_answering(request.headers["webhook-id"])
            writer.write(Answer(503 if fails else 200).encode())
            await writer.drain()

    async def wait_before_answering(self, event_id: str) -> None:
        """Let the answer to a request of this event wait."""
        await asyncio.sleep(self._seconds)

    def _keep(self, request: ReceivedRequest) -> bool:
        """Whether the request is taken."""
        event_id = request.headers["webhook-id"]
        try:
            assert self._webhook is not None
            self._webhook.verify(request.body, request.headers, now=float(request.headers["webhook-timestamp"]))
        except WebhookVerificationError as error:
            self.refused.append(f"{event_id}: {error}")
            return False
        self.arrived.append((event_id, hashlib.sha256(request.body).digest()))
        takes = len(self.arrived) % self._fails_every != 0
        if takes:
            self.taken.append(event_id)
        return takes


class Api:
    """The API as an operator calls it."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.token = token

    def get_readiness(self) -> int | None:
        """The status by which it says whether it can work; None where it says nothing."""
        try:
            return requests.get(f"{self.url}/readyz", timeout=_TIMEOUT).status_code
        except requests.RequestException:
            return None

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """What it answers. Raises `requests.RequestException` where that is no success."""
        headers = {"authorization": f"Bearer {self.token}"}
        answer = requests.request(method, f"{self.url}{path}", json=body, headers=headers, timeout=_TIMEOUT)
        answer.raise_for_status()
        return answer.json()


class Registered:
    """An organization with an endpoint for each receiver."""

    def __init__(self, api: Api, receivers: Sequence[FailingReceiver]) -> None:
        self._api = api
        self._receivers = receivers
        self.organization_id: str = api.ask("POST", "/v1/organizations", {"name": "Example Insurer"})["id"]
        self._path = f"/v1/organizations/{self.organization_id}"
        self._endpoint_ids = [self._register(receiver) for receiver in receivers]

    def _register(self, receiver: FailingReceiver) -> str:
        endpoint = self._api.ask("POST", f"{self._path}/endpoints", {"url": receiver.url})
        receiver.expect(endpoint["signature_value"], endpoint["signing_secret"])
        return str(endpoint["id"])

    def is_delivered(self) -> bool:
        """Whether nothing waits or is in flight."""
        try:
            return not self._api.ask("GET", f"{self._path}/deliveries?state=pending&limit=1")["data"]
        except requests.RequestException:
            return False

    def list_recipients(self) -> list[Recipient]:
        """Who got what."""
        return [
            Recipient(endpoint_id, receiver.arrived, receiver.taken, receiver.refused)
            for endpoint_id, receiver in zip(self._endpoint_ids, self._receivers, strict=True)
        ]
