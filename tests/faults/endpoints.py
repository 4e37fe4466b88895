"""The endpoints of an organization: which there are, when there were, and whether all is done for them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import requests

from tests.faults.asking import Api
from tests.faults.callers import Span
from tests.faults.recipients import FailingReceiver

ALWAYS = Span(-math.inf, -math.inf)
NEVER_YET = Span(math.inf, math.inf)


@dataclass
class Endpoint:
    """An endpoint, and what was done to it."""

    id: str
    name: str
    receiver: FailingReceiver
    created: Span = ALWAYS
    deleted: Span = NEVER_YET
    revision: int = 0
    """Of its URL."""
    is_paused: bool = False
    """Whether it is, and stays so."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """What it was registered with."""
        return self.receiver.fields

    @property
    def url(self) -> str:
        """Where requests go."""
        return self.receiver.name_url(self.name, self.revision)

    @property
    def path(self) -> str:
        """The part of the URL that tells it from those that the endpoint had before."""
        return f"/{self.name}/{self.revision}"

    @property
    def is_deleted(self) -> bool:
        """Whether somebody asked for that."""
        return self.deleted is not NEVER_YET


class Registered:
    """An organization with an endpoint for each receiver, and those that come and go."""

    def __init__(self, api: Api, receivers: Sequence[FailingReceiver]) -> None:
        self._api = api
        self.began = time.monotonic()
        self.opened_at = math.inf
        """From when on no rate was limited any more."""
        self.organization_id: str = api.ask("POST", "/v1/organizations", {"name": "Example Insurer"})["id"]
        self.path = f"/v1/organizations/{self.organization_id}"
        self.lasting = [self._register(receiver, number) for number, receiver in enumerate(receivers)]
        self.passing: list[Endpoint] = []
        """Those that somebody created meanwhile, most of which are deleted again."""

    @property
    def endpoints(self) -> list[Endpoint]:
        """All that there ever were."""
        return [*self.lasting, *self.passing]

    def _register(self, receiver: FailingReceiver, number: int) -> Endpoint:
        name = f"lasting-{number}"
        body = {"url": receiver.name_url(name), **receiver.fields}
        created = self._api.ask("POST", f"{self.path}/endpoints", body)
        receiver.expect(name, created["signature_value"], created["signing_secret"])
        return Endpoint(str(created["id"]), name, receiver)

    def open_all(self) -> None:
        """Let all lasting endpoints receive, with their circuits closed and as fast as they can."""
        self.opened_at = time.monotonic()
        for endpoint in self.lasting:
            self._api.ask("PATCH", f"/v1/endpoints/{endpoint.id}", {"rate_limit": None})
            self._api.ask("POST", f"/v1/endpoints/{endpoint.id}/resume")

    def is_delivered(self) -> bool:
        """Whether nothing waits or is in flight, but for endpoints that stay paused; what is disabled is resumed."""
        try:
            return not any(self._list_unfinished())
        except requests.RequestException:
            return False

    def describe_unfinished(self) -> str:
        """What is not done, and what some of it waits for, as the API says."""
        told = list(self._list_unfinished())
        told += [
            f"{delivery}"
            for state in ("pending", "held")
            for delivery in self._api.ask("GET", f"{self.path}/deliveries?state={state}&limit=5")["data"]
        ]
        return "\n".join(told)

    def _list_unfinished(self) -> Iterator[str]:
        for endpoint in self.lasting:
            if self._api.ask("GET", f"/v1/endpoints/{endpoint.id}")["status"] != "active":
                self._api.ask("POST", f"/v1/endpoints/{endpoint.id}/resume")
                yield f"{endpoint.name} was disabled"
        if self._api.ask("GET", f"{self.path}/deliveries?state=pending&limit=1")["data"]:
            yield "deliveries are pending"
        for endpoint in self.endpoints:
            only = f"state=held&limit=1&endpoint_id={endpoint.id}"
            if not endpoint.is_paused and self._api.ask("GET", f"{self.path}/deliveries?{only}")["data"]:
                yield f"deliveries are held for {endpoint.name}"
