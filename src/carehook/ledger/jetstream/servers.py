"""Where NATS is, and a connection to it.

Laws:
- Of an address only scheme, host and port are ever shown. User, password and token are kept apart, as secrets.
- `tls:` is kept: without an encrypted connection, neither they nor anything else is sent.
- A connection that is lost stays lost. Who holds it opens another; nothing is buffered behind their back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

import nats.errors
from nats.aio.client import Client
from pydantic import SecretStr

from carehook.ledger.connections.tls import describe_tls_error

DEFAULT_PORT: Final = 4222

_CONNECT_SECONDS: Final = 3
_PING_SECONDS: Final = 5
_DISCONNECT_SECONDS: Final = 1
_EXAMPLE: Final = "write it as nats://user:password@host:4222, several separated by commas"

CLIENT_ERRORS: Final = (nats.errors.Error, OSError, TimeoutError, ValueError)
"""What the client raises where a server does not answer, refuses, or answers what cannot be read."""


@dataclass(frozen=True, slots=True)
class Server:
    """The address of a NATS server. A password without a user is a token."""

    host: str
    port: int
    encrypted: bool
    user: str | None = None
    password: SecretStr | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'tls' if self.encrypted else 'nats'}://{host}:{self.port}"


class JetStreamUnavailable(Exception):
    """JetStream cannot be used; the message is a plain sentence, without anything secret, that says why."""


class Unreachable(JetStreamUnavailable):
    """No server could be connected to."""


class _NotEncrypted(ConnectionError):
    """A server that should does not speak TLS."""


def parse_queue_url(text: str) -> Sequence[Server]:
    """The servers that comma-separated URLs name. Raises ValueError, with a sentence for people that shows no URL."""
    return [_parse_server(part.strip()) for part in text.split(",")]


def _parse_server(text: str) -> Server:
    try:
        url = urlsplit(text)
        port = url.port or DEFAULT_PORT
    except ValueError:
        raise ValueError(f"the URL cannot be read; {_EXAMPLE}") from None
    if url.scheme not in ("nats", "tls"):
        raise ValueError(f"each URL begins with nats:// or tls://; {_EXAMPLE}")
    # An @ or a slash of a password that is not escaped would make a part of it the host.
    if not url.hostname or "@" in (url.username or "") + (url.password or "") or _has_more(url):
        raise ValueError(f"a URL ends with its port, and in a password %40 stands for @ and %2F for /; {_EXAMPLE}")
    user, password = _read_credentials(url)
    return Server(url.hostname, port, url.scheme == "tls", user, password)


def _has_more(url: SplitResult) -> bool:
    return url.path not in ("", "/") or bool(url.query or url.fragment)


def _read_credentials(url: SplitResult) -> tuple[str | None, SecretStr | None]:
    if url.username is None:
        return None, None
    if url.password is None:
        return None, SecretStr(unquote(url.username))
    return unquote(url.username), SecretStr(unquote(url.password))


def build_tls(certificates: bytes | None) -> ssl.SSLContext:
    """What servers' certificates are checked with: the system's authorities and those of `certificates` (PEM).

    Raises ValueError where those are none.
    """
    context = ssl.create_default_context()
    if certificates is not None:
        try:
            context.load_verify_locations(cadata=certificates.decode("ascii"))
        except (ssl.SSLError, UnicodeDecodeError):
            raise ValueError("it holds no certificates in PEM form") from None
    return context


async def connect(servers: Sequence[Server], tls: ssl.SSLContext, on_closed: Callable[[], None]) -> Client:
    """A connection to one of the servers. `on_closed` is called when it is lost. Raises `Unreachable`."""
    reasons = []
    for server in random.sample(servers, len(servers)):
        try:
            return await _connect(server, tls, on_closed)
        except CLIENT_ERRORS as error:
            reasons.append(f"{server} {describe_error(error)}")
    raise Unreachable("; ".join(sorted(reasons)))


async def _connect(server: Server, tls: ssl.SSLContext, on_closed: Callable[[], None]) -> Client:
    client = Client()
    causes: list[Exception] = []

    async def note_error(error: Exception) -> None:
        causes.append(error)

    async def note_closed() -> None:
        on_closed()

    def reveal(secret: str) -> Callable[[], str]:
        def tell() -> str:
            _require_tls(server, client)
            return secret

        return tell

    password = server.password.get_secret_value() if server.password else None
    try:
        await client.connect(
            [str(server)],
            error_cb=note_error,
            closed_cb=note_closed,
            name="carehook",
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=_CONNECT_SECONDS,
            ping_interval=_PING_SECONDS,
            tls=tls,
            user=server.user,
            password=reveal(password) if password is not None and server.user is not None else None,
            token=reveal(password) if password is not None and server.user is None else None,
        )
        _require_tls(server, client)
    except nats.errors.NoServersError:
        # Its own words are that it gave up; why is what it had told before.
        await disconnect(client)
        raise causes[-1] if causes else OSError("does not answer") from None
    except BaseException:
        await disconnect(client)
        raise
    return client


async def disconnect(client: Client) -> None:
    """Close a connection, whatever state it is in."""
    # The client waits without end for a connection whose TLS handshake failed to say that it has ended.
    with contextlib.suppress(*CLIENT_ERRORS):
        async with asyncio.timeout(_DISCONNECT_SECONDS):
            await client.close()


def _require_tls(server: Server, client: Client) -> None:
    """Raises where a connection to be encrypted is not offered to be: the client would go on in clear."""
    if server.encrypted and not client._server_info.get("tls_required"):
        raise _NotEncrypted


def describe_error(error: BaseException) -> str:
    """What went wrong, as the end of a sentence that a server's address begins; nothing secret is in it."""
    if about_tls := describe_tls_error(error):
        return about_tls
    match error:
        case _NotEncrypted():
            return "does not offer TLS"
        case TimeoutError():
            return "does not answer in time"
        case nats.errors.Error():
            return _describe_refusal(str(error).removeprefix("nats: ").strip("' \r\n"))
        case OSError(errno=int(number)) if number > 0:
            return f"does not answer: {os.strerror(number).lower()}"
        case OSError():
            return f"does not answer: {(error.strerror or 'the connection failed').lower()}"
    return "answers as no NATS server does"


def _describe_refusal(words: str) -> str:
    if "authorization violation" in words.lower():
        return "refuses the user, password or token"
    return f"refuses: {words}" if words else "does not answer"
