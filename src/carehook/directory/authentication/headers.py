"""Headers of the organization's own on every request, such as an API key.

They add to the request and change nothing of it: names that Carehook sets itself, or that decide where a
message ends and how it is read, are refused.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from carehook.directory.authentication.fields import SecretHeaderValue
from carehook.directory.authentication.flow import AuthenticationFlow, AuthenticationMethod
from carehook.exchange import Request

# RFC 9110 §5.6.2, a token.
_NAME: Final = "^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}$"

RESERVED_NAMES: Final = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "x-webhook-signature",
    }
)
RESERVED_PREFIXES: Final = ("proxy-", "webhook-")


def _check_headers(headers: dict[str, SecretHeaderValue]) -> dict[str, SecretHeaderValue]:
    """`headers` with lower-case names. Raises `PydanticCustomError` on a name that is malformed, taken or repeated."""
    checked: dict[str, SecretHeaderValue] = {}
    for given, value in headers.items():
        if re.fullmatch(_NAME, given) is None:
            raise PydanticCustomError(
                "header_name",
                "must have names of 1 to 100 ASCII letters, digits and signs such as '-', without spaces and colons",
            )
        name = given.lower()
        if name in RESERVED_NAMES or name.startswith(RESERVED_PREFIXES):
            raise PydanticCustomError(
                "reserved_header", "must not have the header '{name}', which is Carehook's own to set", {"name": name}
            )
        if name in checked:
            raise PydanticCustomError(
                "repeated_header", "must not have the header '{name}' twice: names ignore case", {"name": name}
            )
        checked[name] = value
    return checked


class HeadersAuthentication(AuthenticationMethod):
    """Up to 20 headers with secret values, as given (names in lower case)."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"type": "headers", "headers": {"x-api-key": "31d8d2a4-key"}}]}
    )

    type: Literal["headers"]
    headers: Annotated[
        dict[str, SecretHeaderValue],
        Field(
            min_length=1,
            max_length=20,
            json_schema_extra={
                "propertyNames": {"pattern": _NAME, "not": {"enum": sorted(RESERVED_NAMES)}},
            },
        ),
        AfterValidator(_check_headers),
    ]

    def authenticate(self, request: Request) -> AuthenticationFlow:
        """Send the request with the headers."""
        yield request.with_headers({name: value.get_secret_value() for name, value in self.headers.items()})
