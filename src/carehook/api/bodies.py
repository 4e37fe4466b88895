"""What is read of a request: JSON, and never more than its route takes, whatever `Content-Length` says.

What is beyond the limit is not read into memory; the server drops it as it comes.
"""

from __future__ import annotations

from typing import Any, Final

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope

from carehook.api.problems import RequestRefused
from carehook.field_errors import BODY, FieldError

MEBIBYTE: Final = 1024 * 1024


class JsonRequest(Request):
    """A request whose JSON is read strictly: no NaN, and no lone surrogates, which no store can keep."""

    async def json(self) -> Any:
        """The parsed body. Raises `json.JSONDecodeError`, which names a position and shows no content.

        Raises `RequestRefused` (422) for `null`: FastAPI would take it for a body that is left out.
        """
        parsed = orjson.loads(await self.body())
        if parsed is None:
            rule = "must be an object"
            raise RequestRefused(422, f"The body {rule}.", [FieldError(BODY, rule)])
        return parsed


def find_header(scope: Scope, name: bytes) -> bytes | None:
    """The first value of a header; `name` in lower case."""
    for header, value in scope["headers"]:
        if header == name:
            return bytes(value)
    return None


def check_media_type(scope: Scope) -> None:
    """Raises `RequestRefused` (415) where there is a body of a type that is not JSON."""
    content_type = find_header(scope, b"content-type")
    if content_type is None or not _has_body(scope):
        return
    media_type = content_type.partition(b";")[0].strip().lower()
    if media_type != b"application/json" and not (
        media_type.startswith(b"application/") and media_type.endswith(b"+json")
    ):
        raise RequestRefused(
            415, "The body must be JSON: send `Content-Type: application/json`.", [FieldError("Content-Type", _JSON)]
        )


_JSON: Final = "must be application/json"


def _has_body(scope: Scope) -> bool:
    return find_header(scope, b"transfer-encoding") is not None or find_header(scope, b"content-length") not in (
        None,
        b"0",
    )


def limit_body(scope: Scope, receive: Receive, limit: int) -> Receive:
    """`receive`, but it raises `RequestRefused` (413) as soon as there are more than `limit` bytes.

    It raises so at once where more are announced.
    """
    announced = find_header(scope, b"content-length")
    if announced is not None and announced.isdigit() and int(announced) > limit:
        raise _build_too_large(limit)
    received = 0

    async def receive_limited() -> Message:
        nonlocal received
        message = await receive()
        if message["type"] == "http.request":
            received += len(message.get("body", b""))
            if received > limit:
                raise _build_too_large(limit)
        return message

    return receive_limited


async def read_body(receive: Receive) -> bytes:
    """The whole body. Raises `ClientDisconnect` where the client went before it was complete."""
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _build_too_large(limit: int) -> RequestRefused:
    rule = f"must have at most {limit} bytes"
    return RequestRefused(413, f"The body {rule}.", [FieldError(BODY, rule)])
