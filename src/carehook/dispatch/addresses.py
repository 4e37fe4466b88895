"""Which targets may be contacted.

The law of this module: what is judged is what is contacted. A URL is read once, by the HTTP client's own parser
(WHATWG URL), so no spelling of a host means one thing here and another there; every address of a name is judged,
not the one that comes first; and whoever connects uses `Target.addresses` and never resolves the name again.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from dataclasses import dataclass, field
from functools import lru_cache, partial
from ipaddress import IPv6Address, ip_address

from pyreqwest.http import Url

from carehook.dispatch.address_ranges import IPAddress, IPNetwork, match_embedded_ipv4, match_forbidden_range

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host name and port in, IP addresses out. Raises `OSError` (as `socket.gaierror` and `TimeoutError` are) or
`UnicodeError` where there are none."""

URL_LENGTH_LIMIT = 2048
"""Characters of a URL, as given and as canonicalised."""

RESOLUTION_TIMEOUT = 5.0
"""Seconds that the resolution of one name may take."""

RESOLUTION_LIFETIME = 3.0
"""Seconds for which a resolution, successful or not, is used again: a busy endpoint does not ask for each delivery."""

_CACHE_SIZE = 2048


class AddressNotAllowed(ValueError):
    """The rules forbid this URL. The message names the rule, for people; never the URL or a resolved address.

    It is a clause that begins with "the URL", so that it can follow the name of a field in its place.
    """


class NameNotResolved(ValueError):
    """The URL's host name has no address at the moment: as likely an outage as a misspelling.

    Its message, too, is a clause that begins with "the URL".
    """


@dataclass(frozen=True, slots=True)
class CheckedUrl:
    """A URL that keeps the rules as far as can be told without resolving its name.

    `host` is lower-case, ASCII, without brackets or a trailing dot; `literal` is the address where the host is one.
    URLs can hold tokens of the receiver, so `url`, the canonical form, is not in the `repr`.
    """

    url: str = field(repr=False)
    scheme: str
    host: str
    port: int
    literal: IPAddress | None
    parsed: Url = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Target(CheckedUrl):
    """A URL and the addresses, at least one, on which it may be contacted: the first is to be preferred."""

    addresses: tuple[str, ...]


class SystemResolver:
    """Resolves names as this machine does (`getaddrinfo`).

    It has threads of its own: names whose servers hang then delay one another, and nothing else in the process.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=32, thread_name_prefix="resolve")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """The addresses of `host`, best first (RFC 6724). Raises as `Resolver` says."""
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))


class _SharedResolver:
    """Asks `resolve` once for all who ask about a name at the same time or within `lifetime` seconds of it.

    A name that takes longer than `timeout` seconds counts as one that does not resolve.
    """

    def __init__(self, resolve: Resolver, timeout: float, lifetime: float) -> None:
        self._resolve = resolve
        self._timeout = timeout
        self._lifetime = lifetime
        self._begun: dict[tuple[str, int], tuple[float, asyncio.Task[tuple[str, ...]]]] = {}

    async def __call__(self, host: str, port: int) -> tuple[str, ...]:
        """The addresses of `host`; none where it does not resolve."""
        now = time.monotonic()
        begun_at, task = self._begun.get((host, port), (0.0, None))
        if task is None or (task.done() and now >= begun_at + self._lifetime):
            self._forget_old(now)
            task = asyncio.create_task(self._ask(host, port), context=Context())
            self._begun[host, port] = (now, task)
        # The shield: one who gives up waiting must not cancel the answer of the others.
        return task.result() if task.done() else await asyncio.shield(task)

    async def _ask(self, host: str, port: int) -> tuple[str, ...]:
        try:
            async with asyncio.timeout(self._timeout):
                return tuple(await self._resolve(host, port))
        except (OSError, UnicodeError):
            return ()

    def _forget_old(self, now: float) -> None:
        if len(self._begun) >= _CACHE_SIZE:
            oldest = now - self._lifetime
            self._begun = {key: (at, task) for key, (at, task) in self._begun.items() if at > oldest or not task.done()}


class AddressRules:
    """The rules on targets: https (or http, if `allow_http`) on a public address or in one of `allowed_networks`.

    `resolve` is asked for the addresses of names. It has `resolution_timeout` seconds, and its answers are used for
    `resolution_lifetime` seconds.
    """

    def __init__(
        self,
        allowed_networks: Sequence[IPNetwork] = (),
        allow_http: bool = False,
        resolve: Resolver | None = None,
        *,
        resolution_timeout: float = RESOLUTION_TIMEOUT,
        resolution_lifetime: float = RESOLUTION_LIFETIME,
    ) -> None:
        self._allowed_networks = tuple(allowed_networks)
        self._beginnings = ("https://", "http://") if allow_http else ("https://",)
        self._resolve = _SharedResolver(resolve or SystemResolver(), resolution_timeout, resolution_lifetime)
        # Judging is pure and costs more than the rest of a resolution, and the same URLs come again and again.
        self._checked = lru_cache(_CACHE_SIZE)(self._check_url)
        self._judged = lru_cache(_CACHE_SIZE)(self._judge)

    def check_url(self, url: str) -> CheckedUrl:
        """`url`, parsed and checked, without resolving its name. Raises `AddressNotAllowed`."""
        return self._checked(url)

    async def resolve(self, url: str) -> Target:
        """`url` with the addresses on which it may be contacted now.

        Every address of the name is judged, and a forbidden one forbids the target, for a name that is partly
        public and partly internal is an attack or a mistake. One exception serves names such as `localhost`, which
        is 127.0.0.1 and ::1 where the operator allowed only 127.0.0.0/8: if no address is public and some are in
        allowed networks, the forbidden ones are left out. That is safe, as they are left out of `addresses` too, and
        whoever controls the name could as well have named the allowed addresses alone.

        Raises `AddressNotAllowed` or `NameNotResolved`.
        """
        checked = self._checked(url)
        if checked.literal is not None:
            return self._judged(checked, (str(checked.literal),))
        found = await self._resolve(checked.host, checked.port)
        if not found:
            raise NameNotResolved("the URL has a host name that does not resolve to an address")
        return self._judged(checked, found)

    def _judge(self, url: CheckedUrl, found: tuple[str, ...]) -> Target:
        return Target(url.url, url.scheme, url.host, url.port, url.literal, url.parsed, self._permit(found))

    def _check_url(self, url: str) -> CheckedUrl:
        parsed = _parse_url(url)
        if f"{parsed.scheme}://" not in self._beginnings:
            raise AddressNotAllowed(f"the URL must begin with {' or '.join(self._beginnings)}")
        if parsed.username or parsed.password is not None:
            raise AddressNotAllowed("the URL must not hold a user name or password; set the endpoint's authentication")
        if parsed.fragment is not None:
            raise AddressNotAllowed("the URL must not have a fragment (the part after #)")
        port = parsed.port_or_known_default
        if not port:
            raise AddressNotAllowed("the URL must have a port between 1 and 65535")
        host = (parsed.host_str or "").strip("[]")
        literal = None if parsed.domain is not None else ip_address(host)
        if literal is not None:
            self._permit((str(literal),))
        return CheckedUrl(str(parsed), parsed.scheme, host, port, literal, parsed)

    def _permit(self, found: tuple[str, ...]) -> tuple[str, ...]:
        """Those of `found` that may be contacted, by the rule that `resolve` describes."""
        judged = [(text, self._is_allowed(ip_address(text)), self._find_objection(ip_address(text))) for text in found]
        objection = next((objection for _, _, objection in judged if objection), None)
        has_public = any(not allowed and not objection for _, allowed, objection in judged)
        permitted = tuple(text for text, _, objection in judged if not objection)
        if objection and (has_public or not permitted):
            raise AddressNotAllowed(
                f"the URL has a host with an address in a forbidden range ({objection}); "
                "only networks in CAREHOOK_ALLOWED_NETWORKS are exempt"
            )
        return permitted

    def _find_objection(self, address: IPAddress) -> str | None:
        """The forbidden range that `address` is in, None where it may be contacted."""
        if not self._is_allowed(address):
            return match_forbidden_range(address)
        embedded = match_embedded_ipv4(address)
        return self._find_objection(embedded) if embedded is not None else None

    def _is_allowed(self, address: IPAddress) -> bool:
        """Whether the operator named its network. A mapped address is judged as the IPv4 address that it stands for."""
        if isinstance(address, IPv6Address):
            if address.scope_id is not None:  # a zone of this machine, which no URL can name
                return False
            address = address.ipv4_mapped or address
        return any(address in network for network in self._allowed_networks)


def _parse_url(url: str) -> Url:
    """`url` as the HTTP client reads it, its host without a trailing dot."""
    if len(url) > URL_LENGTH_LIMIT:
        raise AddressNotAllowed(f"the URL must not be longer than {URL_LENGTH_LIMIT} characters")
    if any(character <= " " or character == "\x7f" for character in url):
        raise AddressNotAllowed("the URL must not contain white space or control characters")
    try:
        parsed = Url(url)
        if parsed.domain is not None and parsed.domain.endswith("."):
            parsed = Url(str(parsed.with_host(parsed.domain[:-1])))
    except ValueError as error:  # its messages are the parser's own and do not repeat the URL
        raise AddressNotAllowed(f"the URL is not valid: {error}") from None
    if parsed.domain is not None and "" in parsed.domain.split("."):
        raise AddressNotAllowed("the URL has a host name with an empty part")
    if len(str(parsed)) > URL_LENGTH_LIMIT:
        raise AddressNotAllowed(f"the URL must not be longer than {URL_LENGTH_LIMIT} characters once encoded")
    return parsed
