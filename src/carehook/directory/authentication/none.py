"""No authentication but the agreed `x-webhook-signature` and the signatures that every request has."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from carehook.directory.authentication.flow import AuthenticationFlow, AuthenticationMethod
from carehook.exchange import Request


class NoAuthentication(AuthenticationMethod):
    """Nothing is added to the request."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"type": "none"}]})

    type: Literal["none"]

    def authenticate(self, request: Request) -> AuthenticationFlow:
        """Send the request as it is."""
        yield request
