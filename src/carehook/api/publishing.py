"""Publishing, the hot path: bytes in, one transaction, a few bytes out.

These routes are FastAPI's in path and documentation alone. Their handlers get the request as it is: the catalogue's own
models are the only thing that parses the body, and it is parsed once.
"""

from __future__ import annotations

from typing import Any, ClassVar

import orjson
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from carehook.api.bodies import MEBIBYTE, find_header, read_body
from carehook.api.problems import build_problem
from carehook.api.routes import MemberRoute, build_router, find_application
from carehook.events import BODY, InvalidEvent, parse_event, parse_events

_STATUS_ACCEPTED = 202


class PublishRoute(MemberRoute):
    """Operators, and publishers of the organization in the path; the handler reads the body itself."""

    @property
    def takes_body(self) -> bool:
        """Always: FastAPI knows of no body here."""
        return True

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the function itself, without FastAPI's stacks for dependencies, of which it has none."""
        response: Response = await self.endpoint(Request(scope, receive))
        await response(scope, receive, send)


class BatchRoute(PublishRoute):
    """The same for many events in one request."""

    body_limit: ClassVar[int] = 16 * MEBIBYTE


single = build_router(PublishRoute, "Publishing")
batch = build_router(BatchRoute, "Publishing")


@single.post("/v1/organizations/{organization_id}/events", status_code=_STATUS_ACCEPTED)
async def publish_event(request: Request) -> Response:
    """Accept one event: the envelope, as it will be sent. When this is answered, the event is on disk.

    It is refused, with every field named, unless it matches its type's model; fields that the contract does not have
    are refused too. Repeated with the same `Idempotency-Key` it is answered as the first time.
    """
    body = await read_body(request.receive)
    try:
        event = parse_event(body)
    except InvalidEvent as refusal:
        return _refuse(refusal, body)
    accepted = await find_application(request.scope).intake.accept(
        request.scope["path_params"]["organization_id"], (event,), _read_key(request)
    )
    return _accept({"id": accepted.event_ids[0], "deliveries": accepted.deliveries})


@batch.post("/v1/organizations/{organization_id}/events/batch", status_code=_STATUS_ACCEPTED)
async def publish_batch(request: Request) -> Response:
    """Accept 1 to 1000 events, all of them or none. The ids are in the order of the events."""
    body = await read_body(request.receive)
    try:
        events = parse_events(body)
    except InvalidEvent as refusal:
        return _refuse(refusal, body)
    accepting = find_application(request.scope).intake.accept(
        request.scope["path_params"]["organization_id"], events, _read_key(request)
    )
    # Several times the size of what is stored of them, which is all that is needed while it waits its turn.
    del body, events
    accepted = await accepting
    return _accept({"ids": accepted.event_ids})


def _read_key(request: Request) -> str | None:
    key = find_header(request.scope, b"idempotency-key")
    return None if key is None else key.decode("latin-1")


def _accept(answer: dict[str, Any]) -> Response:
    return Response(orjson.dumps(answer), _STATUS_ACCEPTED, media_type="application/json")


def _refuse(refusal: InvalidEvent, body: bytes) -> Response:
    status = 422 if refusal.errors[0].field != BODY or _is_json(body) else 400
    return build_problem(status, f"{refusal}.", refusal.errors)


def _is_json(body: bytes) -> bool:
    try:
        from_json(body)
    except ValueError:
        return False
    return True
