"""How a request to an endpoint is authenticated, beyond the signatures that every request has. One method a file.

To add a method: write its file here, a frozen model with a `type` of its own, an example in its JSON Schema
and a flow, and add it to `Authentication`. Nothing else names the methods one by one.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias, get_args

from pydantic import ConfigDict, Field, TypeAdapter

from carehook.directory.authentication.basic import BasicAuthentication
from carehook.directory.authentication.bearer import BearerAuthentication
from carehook.directory.authentication.fields import MASK, REVEAL_SECRETS, RevealableSecret
from carehook.directory.authentication.flow import (
    AccessToken,
    AuthenticationFlow,
    AuthenticationMethod,
    TokenNeeded,
    TokenRefused,
    TokenSource,
)
from carehook.directory.authentication.headers import HeadersAuthentication
from carehook.directory.authentication.none import NoAuthentication
from carehook.directory.authentication.oauth2_client_credentials import OAuth2ClientCredentials

__all__ = [
    "AUTHENTICATION",
    "AUTHENTICATION_TYPES",
    "MASK",
    "REVEAL_SECRETS",
    "AccessToken",
    "Authentication",
    "AuthenticationFlow",
    "AuthenticationMethod",
    "BasicAuthentication",
    "BearerAuthentication",
    "HeadersAuthentication",
    "NoAuthentication",
    "OAuth2ClientCredentials",
    "RevealableSecret",
    "TokenNeeded",
    "TokenRefused",
    "TokenSource",
]

Authentication: TypeAlias = Annotated[
    NoAuthentication | BasicAuthentication | BearerAuthentication | HeadersAuthentication | OAuth2ClientCredentials,
    Field(discriminator="type"),
]

AUTHENTICATION_TYPES: Final = frozenset(
    get_args(method.model_fields["type"].annotation)[0] for method in get_args(get_args(Authentication)[0])
)
"""The `type` of every method, by which pydantic chooses among them and which it puts into its errors' locations."""

AUTHENTICATION: Final[TypeAdapter[Authentication]] = TypeAdapter(
    Authentication, config=ConfigDict(hide_input_in_errors=True)
)
"""Parses and dumps any method where it stands alone, not in a field of a model."""
