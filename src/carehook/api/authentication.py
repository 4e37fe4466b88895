"""Who calls: a bearer token (RFC 6750) in the header `Authorization`, and nowhere else.

No token text is ever logged or answered.
"""

from __future__ import annotations

from typing import Final

import structlog
from starlette.types import Scope

from carehook.access.tokens import Tokens
from carehook.api.bodies import find_header
from carehook.api.problems import RequestRefused
from carehook.ledger.records import Role, Token

_CHALLENGE: Final = 'Bearer realm="carehook"'

_log = structlog.get_logger("carehook.api")


async def authenticate(scope: Scope, tokens: Tokens) -> Token:
    """The token of a request. Raises `RequestRefused` (401, with a challenge) where there is no valid one."""
    scheme, _, secret = (find_header(scope, b"authorization") or b"").partition(b" ")
    if scheme.lower() != b"bearer" or not secret.strip():
        # RFC 6750 §3.1: no error code for a request that says nothing of authentication.
        raise _refuse(scope, "Send a token as `Authorization: Bearer …`.", _CHALLENGE)
    token = await tokens.find(secret.strip().decode("latin-1"))
    if token is None:
        challenge = f'{_CHALLENGE}, error="invalid_token", error_description="unknown or revoked"'
        raise _refuse(scope, "The token is unknown or was revoked.", challenge)
    return token


def check_operator(token: Token) -> None:
    """Raises `RequestRefused` (403) for a token that is no operator's."""
    if token.role is not Role.OPERATOR:
        raise _build_forbidden("This call needs an operator's token; yours is a publisher's.")


def check_member(token: Token, organization_id: str) -> None:
    """Raises `RequestRefused` (403) for a publisher's token that is bound to another organization."""
    if token.role is not Role.OPERATOR and token.organization_id != organization_id:
        raise _build_forbidden("This token is bound to another organization; use it for its own alone.")


def _build_forbidden(detail: str) -> RequestRefused:
    return RequestRefused(403, detail, headers={"WWW-Authenticate": f'{_CHALLENGE}, error="insufficient_scope"'})


def _refuse(scope: Scope, detail: str, challenge: str) -> RequestRefused:
    client = scope.get("client")
    _log.warning(
        "authentication_refused",
        reason=detail,
        method=scope["method"],
        # The pattern of the path: a path itself may hold a patient's code.
        route=getattr(scope.get("route"), "path", None),
        client=client[0] if client else None,
    )
    return RequestRefused(401, detail, headers={"WWW-Authenticate": challenge})
