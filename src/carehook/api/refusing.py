"""Whatever goes wrong becomes a problem document, here and nowhere else.

Laws:
- What a use case refuses is answered in its own words; a store that is out of reach is a 503 that says when to repeat.
- Anything else is a 500 with an incident id. Its line in the log has the place in the code, and neither the exception's
  text nor the path of the request, for both may hold a patient's data.
- Why the store is out of reach is for the operator: the log has all of it, the answer nothing of where the store is.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any, Final
from uuid import uuid4

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from carehook.api.problems import KINDS, RequestRefused, build_problem
from carehook.api.validation import build_request_errors
from carehook.batching import BatcherClosedError
from carehook.events import InvalidEvent
from carehook.ledger.port import DuplicateKey, LedgerUnavailable
from carehook.refusals import Conflict, Invalid, NotFound, Refusal

RETRY_AFTER_SECONDS: Final = 1

STORE_ERRORS: Final[tuple[type[Exception], ...]] = (
    LedgerUnavailable,
    BatcherClosedError,
    DuplicateKey,
)
"""What says that the store cannot be used now, and nothing about the request."""

_STATUSES: Final[Mapping[type[Refusal], int]] = {NotFound: 404, Invalid: 422, Conflict: 409}

_ON_EVERY_ANSWER: Final = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]

_log = structlog.get_logger("carehook.api")


class Answers:
    """The outermost layer: every answer has its headers, and no exception goes on to the server, which would log it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal is_begun
            if message["type"] == "http.response.start":
                is_begun = True
                message["headers"] = [*message.get("headers", ()), *_ON_EVERY_ANSWER]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            problem = build_problem(500, incident=_log_incident("unexpected_error", scope, error))
            if not is_begun:
                await problem(scope, receive, send_with_headers)


def refuse_with_problems(app: FastAPI) -> None:
    """Answer everything that handlers of `app` raise with a problem document."""
    handlers: list[tuple[type[Exception], Any]] = [
        (Refusal, _answer_refusal),
        (InvalidEvent, _answer_invalid_event),
        (RequestValidationError, _answer_invalid_request),
        (HTTPException, _answer_http),
        (ClientDisconnect, _answer_disconnect),
        *((error, _answer_unavailable) for error in STORE_ERRORS),
    ]
    for error, handler in handlers:
        app.add_exception_handler(error, handler)


async def _answer_refusal(_request: Request, refusal: Refusal) -> Response:
    return build_problem(_STATUSES[type(refusal)], refusal.detail, refusal.errors)


async def _answer_invalid_event(_request: Request, refusal: InvalidEvent) -> Response:
    return build_problem(422, f"{refusal}.", refusal.errors)


async def _answer_invalid_request(_request: Request, refusal: RequestValidationError) -> Response:
    details = refusal.errors()
    errors = build_request_errors(details)
    status = 400 if details and details[0]["type"] == "json_invalid" else 422
    return build_problem(status, "; ".join(str(error) for error in errors[:3]) + ".", errors)


async def _answer_http(request: Request, refusal: HTTPException) -> Response:
    if isinstance(refusal, RequestRefused):
        return build_problem(refusal.status_code, refusal.detail, refusal.errors, headers=refusal.headers)
    if refusal.status_code == 405:
        allowed = ", ".join(_list_methods(request))
        return build_problem(405, f"This path takes {allowed}.", headers={"Allow": allowed})
    return build_problem(refusal.status_code)


async def _answer_disconnect(_request: Request, _gone: ClientDisconnect) -> Response:
    return build_problem(400, "The body was not sent to its end.")


async def _answer_unavailable(request: Request, error: Exception) -> Response:
    incident = _log_incident("store_unavailable", request.scope, error)
    unknown = KINDS[503].detail
    detail = f"{error.public} {unknown}" if isinstance(error, LedgerUnavailable) else unknown
    return build_problem(503, detail, headers={"Retry-After": str(RETRY_AFTER_SECONDS)}, incident=incident)


def _list_methods(request: Request) -> list[str]:
    """Every method that some route takes at this path."""
    matching = (route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in matching for method in getattr(route, "methods", ())})


def describe_reason(error: Exception) -> dict[str, str]:
    """What a line in the log says of why the store is out of reach; nothing of any other exception's text."""
    return {"reason": str(error)} if isinstance(error, LedgerUnavailable) else {}


def _log_incident(event: str, scope: Scope, error: Exception) -> str:
    incident = uuid4().hex
    _log.error(
        event,
        incident=incident,
        error=type(error).__name__,
        method=scope["method"],
        route=getattr(scope.get("route"), "path", None),
        **describe_reason(error),
        where=[f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)],
    )
    return incident
