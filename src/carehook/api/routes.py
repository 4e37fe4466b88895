"""Who may call what: every route is of one of the classes here, and its class is its rule.

Before anything of a request is read, it is authenticated and authorized; then its ids, its media type and its size are
checked, in this order.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, ClassVar, Final

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from carehook.api.authentication import authenticate, check_member, check_operator
from carehook.api.bodies import MEBIBYTE, JsonRequest, check_media_type, limit_body
from carehook.application import Application
from carehook.ids import DELIVERY, ENDPOINT, EVENT, ORGANIZATION, is_id
from carehook.ledger.records import Token
from carehook.refusals import NotFound

TOKEN_KEY: Final = "carehook.token"  # noqa: S105 (a key of the ASGI scope, no secret)

_PREFIXES: Final[Mapping[str, str]] = {
    "organization_id": ORGANIZATION,
    "endpoint_id": ENDPOINT,
    "event_id": EVENT,
    "delivery_id": DELIVERY,
}


class PublicRoute(APIRoute):
    """Anyone may call it, without a token."""

    body_limit: ClassVar[int] = MEBIBYTE

    async def admit(self, scope: Scope) -> None:
        """Return where the caller may go on; raise `RequestRefused` where not."""

    @property
    def takes_body(self) -> bool:
        """Whether the body is read at all."""
        return self.body_field is not None

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["method"] in (self.methods or ()):
            await self.admit(scope)
            _check_ids(scope["path_params"])
            if self.takes_body:
                check_media_type(scope)
                receive = limit_body(scope, receive, self.body_limit)
            await self.respond(scope, receive, send)
        else:
            await super().handle(scope, receive, send)

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that was let in."""
        await super().handle(scope, receive, send)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, on a request that reads JSON strictly."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_json


class TokenRoute(PublicRoute):
    """Any valid token may call it; the route itself shows a publisher its organization's alone."""

    async def admit(self, scope: Scope) -> None:
        """Authenticate, then authorize."""
        token = await authenticate(scope, find_application(scope).tokens)
        self.authorize(token, scope["path_params"])
        scope[TOKEN_KEY] = token

    def authorize(self, token: Token, path: Mapping[str, str]) -> None:
        """Raises `RequestRefused` (403) where the token does not allow the call."""


class MemberRoute(TokenRoute):
    """Operators, and publishers of the organization in the path."""

    def authorize(self, token: Token, path: Mapping[str, str]) -> None:
        """See `check_member`."""
        check_member(token, path["organization_id"])


class OperatorRoute(TokenRoute):
    """Operators alone."""

    def authorize(self, token: Token, path: Mapping[str, str]) -> None:
        """See `check_operator`."""
        check_operator(token)


def build_router(route_class: type[PublicRoute], tag: str) -> APIRouter:
    """A router for calls of one rule, under one heading of the documentation."""
    # A missing content type counts as JSON: no browser sends our tokens by itself, so there is nothing to forge.
    return APIRouter(
        route_class=route_class,
        tags=[tag],
        strict_content_type=False,
        generate_unique_id_function=lambda route: route.name,
    )


def find_application(scope: Scope) -> Application:
    """The Carehook that a request is for."""
    application: Application = scope["app"].state.application
    return application


def _check_ids(path: Mapping[str, str]) -> None:
    for name, value in path.items():
        prefix = _PREFIXES.get(name)
        # What cannot be an id is not looked for: no store needs to know how to compare it.
        if prefix is not None and not is_id(prefix, value):
            raise NotFound(f"There is no {name.removesuffix('_id')} with this id.")
