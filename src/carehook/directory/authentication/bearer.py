"""A fixed bearer token on every request (RFC 6750)."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from carehook.directory.authentication.fields import SecretToken, build_bearer_header
from carehook.directory.authentication.flow import AuthenticationFlow, AuthenticationMethod
from carehook.exchange import Request


class BearerAuthentication(AuthenticationMethod):
    """`authorization: Bearer …`, with a token that the organization gave us."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"type": "bearer", "token": "mF_9.B5f-4.1JqM"}]})

    type: Literal["bearer"]
    token: SecretToken

    def authenticate(self, request: Request) -> AuthenticationFlow:
        """Send the request with the token."""
        yield request.with_headers(build_bearer_header(self.token))
