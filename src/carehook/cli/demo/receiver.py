"""The example organization: a small HTTP server that verifies what arrives with `carehook.Webhook`, as any would."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Final, Self

from carehook import AnyEvent, Webhook, WebhookVerificationError

FAILS_AT_FIRST: Final = 1
"""How many verified requests are answered 500, so that a retry is seen."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that arrived: what it was verified as, or why it was not, and what was answered."""

    webhook_id: str
    body: bytes
    event: AnyEvent | None
    refusal: str | None
    status: int


class ExampleOrganization:
    """A receiver on a free port of loopback. It verifies once it was told how, by `webhook`."""

    def __init__(self, on_arrival: Callable[[Arrival], None]) -> None:
        self.webhook: Webhook | None = None
        self.arrivals: list[Arrival] = []
        self._on_arrival = on_arrival
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._build_handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="example-organization", daemon=True)

    @property
    def url(self) -> str:
        """Where it receives."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/webhooks"

    def receive(self, body: bytes, headers: list[tuple[str, str]]) -> int:
        """Verify one request and remember it; the status to answer with."""
        event, refusal, status = None, None, 204
        try:
            if self.webhook is None:
                raise RuntimeError("a request came before the endpoint was registered")
            event = self.webhook.verify(body, headers)
        except WebhookVerificationError as error:
            refusal, status = str(error), error.status
        with self._lock:
            if event is not None and sum(each.event is not None for each in self.arrivals) < FAILS_AT_FIRST:
                status = 500
            webhook_id = next((value for name, value in headers if name.lower() == "webhook-id"), "")
            arrival = Arrival(webhook_id, body, event, refusal, status)
            self.arrivals.append(arrival)
        self._on_arrival(arrival)
        return status

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _build_handler(self) -> type[BaseHTTPRequestHandler]:
        receive = self.receive

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                self.send_response(receive(body, list(self.headers.items())))
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing: what arrives is told by `on_arrival`."""

        return Handler
