"""Headers as any framework or server hands them over, to one value a name.

A security header that occurs twice is refused: which of the two was meant is not ours to guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from carehook.receiver.errors import Reason, WebhookVerificationError

Headers = Mapping[str, str] | Mapping[bytes, bytes] | Iterable[tuple[str, str]] | Iterable[tuple[bytes, bytes]]
"""A mapping, or pairs; names in any case, as text or as bytes, or as a WSGI environ names them (`HTTP_WEBHOOK_ID`)."""


class SecurityHeaders:
    """The headers of a request by lower-case name."""

    def __init__(self, headers: Headers) -> None:
        self._values: dict[str, list[object]] = {}
        for name, value in _read_pairs(headers):
            self._values.setdefault(_build_name(name), []).append(value)

    def get(self, name: str) -> str:
        """The one value of the header `name`.

        Raises:
            WebhookVerificationError: it is missing, occurs more than once, or is no text.
        """
        values = self._values.get(name, [])
        if not values:
            raise WebhookVerificationError(Reason.MISSING_HEADER, f"the header {name} is missing")
        if len(values) > 1:
            raise WebhookVerificationError(Reason.DUPLICATE_HEADER, f"the header {name} occurs more than once")
        value = _decode(values[0])
        if value is None:
            raise WebhookVerificationError(Reason.MALFORMED_HEADERS, f"the header {name} is neither text nor bytes")
        return value


def _read_pairs(headers: Headers) -> list[tuple[object, object]]:
    try:
        pairs = headers.items() if hasattr(headers, "items") else headers
        return [(name, value) for name, value in pairs]
    except (TypeError, ValueError):
        message = "headers must be a mapping, or pairs of a name and a value"
    raise WebhookVerificationError(Reason.MALFORMED_HEADERS, message)


def _build_name(name: object) -> str:
    text = (_decode(name) or "").lower()
    return text.removeprefix("http_").replace("_", "-") if text.startswith("http_") else text


def _decode(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value if isinstance(value, str) else None
