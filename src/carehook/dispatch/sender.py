"""One HTTP exchange with a target that the address rules allow.

The law of this module: a connection is opened to an address that was judged for this request, and to no other; and
whatever a receiver does ends as an `Outcome` within the time limit, with at most a few KiB of it kept.

For the first half, each name in an HTTP client is pinned to one judged address (`clients`), so that nothing resolves it
a second time; the client follows no redirect and uses no proxy. For the second, nothing is decompressed, and the
deadline is set before the name is resolved: whatever comes later, on whichever address, has only the time that is left.
A receiver that answers and then trickles its body has not answered in time, unless as much as is kept of a body had
arrived.

The HTTP client keeps the deadline of the exchange itself, not a timer of the event loop's. It has to, as an exchange
that is cancelled in Python goes on inside the client until then; and a timer for each would cost a third of the rate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from datetime import timedelta
from typing import Protocol

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import BuilderError, ConnectError, ConnectTimeoutError
from pyreqwest.response import Response

from carehook.dispatch.addresses import AddressNotAllowed, AddressRules, NameNotResolved, Target
from carehook.dispatch.clients import Clients, Pin
from carehook.dispatch.failures import describe_failure, match_unsent
from carehook.exchange import Blocked, Interrupted, Outcome, Request, Responded, Unreachable

CLIENT_LIMIT = 100
"""Clients kept, each about 200 KB of memory, for any number of names."""

IDLE_CONNECTION_LIFETIME = timedelta(seconds=4)
"""How long an unused connection is kept. Common servers close theirs after 5 s, and a request that is sent just
then is lost."""

_ADDRESSES_TRIED = 3
_KEPT_HEADERS = ("retry-after", "content-type")


class Sender(Protocol):
    """Whoever can carry out an HTTP exchange."""

    async def send(self, request: Request) -> Outcome:
        """The outcome of `request`. Raises nothing but `CancelledError`."""
        ...


class GuardedSender:
    """A `Sender` that keeps `rules`, time limits and a size limit.

    Headers go out as the request has them, their names in lower case. Added are `host`, `content-length` and, where
    the request has none of its own, `accept: */*` (the HTTP client cannot leave it out) and `user_agent`.

    `timeout` and `connect_timeout` (TCP and TLS together, for each address) are seconds, `response_limit` is bytes.
    `root_certificates` (PEM) are trusted beside those of the system. Raises `ValueError` when they cannot be read.

    Call `close` at the end: exchanges still in flight then end as `Interrupted`.
    """

    def __init__(
        self,
        rules: AddressRules,
        *,
        user_agent: str = "Carehook",
        timeout: float = 15.0,
        connect_timeout: float = 5.0,
        response_limit: int = 4096,
        root_certificates: bytes | None = None,
        client_limit: int = CLIENT_LIMIT,
    ) -> None:
        self._rules = rules
        self._user_agent = user_agent
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._response_limit = response_limit
        self._root_certificates = root_certificates
        self._clients = Clients(self._build_client, client_limit)
        self._closed = False
        if root_certificates is not None:
            self._check_root_certificates(root_certificates)

    async def send(self, request: Request) -> Outcome:
        """The outcome of `request`. Raises nothing but `CancelledError`.

        Of the response at most `response_limit` bytes of the body are kept, and of the headers `retry-after` and
        `content-type`.
        """
        deadline = time.monotonic() + self._timeout
        try:
            return await self._exchange(request, await self._rules.resolve(request.url), deadline)
        except AddressNotAllowed as error:
            return Blocked(str(error))
        except NameNotResolved as error:
            return Unreachable(str(error))
        except Exception as error:
            return describe_failure(error, timeout=self._timeout, connect_timeout=self._connect_timeout)

    async def close(self) -> None:
        """Close every connection. What is in flight, and what is sent from now on, ends as `Interrupted`."""
        self._closed = True
        await self._clients.close()

    async def _exchange(self, request: Request, target: Target, deadline: float) -> Outcome:
        """Try the addresses of `target` until there is a connection with one; a request is sent once at most."""
        pins = self._list_pins(target)
        for pin in pins[:-1]:
            try:
                return await self._exchange_with(pin, request, target, deadline)
            except (ConnectError, ConnectTimeoutError) as error:
                if not match_unsent(error):
                    raise
                self._clients.forget(pin)  # or it would be preferred the next time
        return await self._exchange_with(pins[-1], request, target, deadline)

    def _list_pins(self, target: Target) -> list[Pin]:
        """Those in use come first: names often resolve in a new order each time, which must not cost connections."""
        pins = [Pin(target.scheme, target.host, target.port, address) for address in target.addresses]
        if len(pins) > 1:
            pins.sort(key=lambda pin: pin not in self._clients)
        return pins[:_ADDRESSES_TRIED]

    async def _exchange_with(self, pin: Pin, request: Request, target: Target, deadline: float) -> Outcome:
        if self._closed:
            return Interrupted("Carehook was stopping")
        client = self._clients.find(pin)
        if client is None:
            async with asyncio.timeout(deadline - time.monotonic()):
                client = await self._clients.make(pin)
        time_left = deadline - time.monotonic()
        if time_left <= 0:
            raise TimeoutError
        exchange = client.request(request.method, target.parsed).headers(request.headers).body_bytes(request.body)
        async with exchange.timeout(timedelta(seconds=time_left)).build_streamed() as response:
            body = await response.body_reader.read(self._response_limit)
            return Responded(response.status, _pick_headers(response), body.to_bytes() if body else b"")

    def _build_client(self, pins: Collection[Pin]) -> Client:
        builder = (
            ClientBuilder()
            .no_proxy()
            .follow_redirects(False)
            .referer(False)
            .default_cookie_store(False)
            .gzip(False)
            .brotli(False)
            .zstd(False)
            .deflate(False)
            .http1_only()
            .http1_lower_case_headers()
            .user_agent(self._user_agent)
            .connect_timeout(timedelta(seconds=self._connect_timeout))
            .pool_idle_timeout(IDLE_CONNECTION_LIFETIME)
        )
        if self._root_certificates is not None:
            builder = builder.add_root_certificate_pem(self._root_certificates)
        for pin in pins:
            # Port 0 leaves the port to the URL; another would hold for all URLs that name none.
            builder = builder.resolve(pin.host, pin.address, 0)
        return builder.build()

    def _check_root_certificates(self, pem: bytes) -> None:
        try:
            ClientBuilder().add_root_certificate_pem(pem).build()
        except BuilderError:
            readable = False
        else:
            readable = b"-----BEGIN CERTIFICATE-----" in pem  # the client takes a text without any for an empty list
        if not readable:
            raise ValueError("the root certificates are not a list of certificates in PEM form")


def _pick_headers(response: Response) -> dict[str, str]:
    headers = {}
    for name in _KEPT_HEADERS:
        try:
            value = response.get_header(name)
        except ValueError:  # bytes that are no text: as good as absent
            continue
        if value is not None:
            headers[name] = value
    return headers
