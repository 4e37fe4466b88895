"""HTTP Basic authentication: a user name and a password on every request (RFC 7617)."""

from __future__ import annotations

import base64
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from carehook.directory.authentication.fields import Matching, RevealableSecret
from carehook.directory.authentication.flow import AuthenticationFlow, AuthenticationMethod
from carehook.exchange import Request

# RFC 7617 §2: the first colon ends the user name, and neither part has control characters.
_USERNAME: Final = Matching(r"^[^:\x00-\x1f\x7f-\x9f]*$", "must have no colon and no control characters (RFC 7617)")
_PASSWORD: Final = Matching(r"^[^\x00-\x1f\x7f-\x9f]*$", "must have no control characters (RFC 7617)")


class BasicAuthentication(AuthenticationMethod):
    """`authorization: Basic …`, the user name and the password in UTF-8.

    Their lengths keep the header within 4 KiB, whatever their characters.
    """

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"type": "basic", "username": "carehook", "password": "open sesame"}]}
    )

    type: Literal["basic"]
    username: Annotated[str, Field(max_length=255), _USERNAME]
    password: Annotated[RevealableSecret, Field(max_length=500), _PASSWORD]

    def authenticate(self, request: Request) -> AuthenticationFlow:
        """Send the request with the credentials, without waiting for a challenge."""
        credentials = f"{self.username}:{self.password.get_secret_value()}".encode()
        yield request.with_headers({"authorization": "Basic " + base64.b64encode(credentials).decode()})
