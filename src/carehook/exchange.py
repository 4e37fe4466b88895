"""Values of one HTTP exchange: what is asked, and every way it can end.

A sender answers a `Request` with an `Outcome`, never with an exception: what a receiver does to us is data, and an
exception is a bug of ours. Reasons are plain sentences without payload and without secret, fit for a log line and for
the support team's screen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request, complete but for `host` and `content-length`, which are added on the way.

    So are `accept` and `user-agent` where it has none. `headers` have lower-case names. They hold secrets and the body
    holds medical data, so neither is in the `repr`.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    def with_headers(self, headers: Mapping[str, str]) -> Request:
        """The same request with `headers` (lower-case names) added, or replaced where the name is there already."""
        return replace(self, headers={**self.headers, **headers})


@dataclass(frozen=True, slots=True)
class Responded:
    """The receiver answered. `body` is the beginning of its response, 4 KiB at most; header names are lower-case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx, the only success there is (a redirect is not followed, so 3xx is a failure)."""
        return 200 <= self.status <= 299


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No complete response arrived: no connection, a bad certificate, a time limit, a dropped connection, garbage.

    The receiver may have acted on the request all the same.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Blocked:
    """The address rules forbade the target; nothing was sent."""

    reason: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Carehook itself kept the outcome from being known, and it costs the receiver no retry.

    A crash, a shutdown, too many open files, secrets that cannot be opened, or a bug of ours.
    """

    reason: str


Outcome = Responded | Unreachable | Blocked | Interrupted
