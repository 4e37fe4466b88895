"""The types of the methods' fields: secrets that stay masked, and text that is safe in a header.

No error here repeats what was given, for what was given may be a secret in the wrong field.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Final, TypeAlias

from pydantic import (
    AfterValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    SecretStr,
    SerializationInfo,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

MASK: Final = "********"
"""What is shown in place of every secret, whatever its length."""

REVEAL_SECRETS: Final = {"reveal_secrets": True}
"""The serialization context under which secrets are written out: `model_dump_json(context=REVEAL_SECRETS)`.

It has one use, sealing the result for the store. The result parses back into an equal value.
"""

HEADER_VALUE_LIMIT: Final = 4096
"""The longest header value that we send, in bytes."""


@dataclass(frozen=True)
class Matching:
    """An `Annotated` rule for `str` or `SecretStr`: it matches `pattern` wholly, or `message` says what is wrong:
    a clause that follows the name of the field, as "must have no colon".

    The pattern is in the JSON Schema as well.
    """

    pattern: str
    message: str

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    def matches(self, text: str) -> bool:
        """Whether the whole of `text` matches."""
        return self._compiled.fullmatch(text) is not None

    def check(self, value: str | SecretStr) -> str | SecretStr:
        """`value` itself. Raises `PydanticCustomError` with the message, never with the value."""
        if not self.matches(value.get_secret_value() if isinstance(value, SecretStr) else value):
            raise PydanticCustomError("pattern", "{message}", {"message": self.message})
        return value

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "pattern": self.pattern}


def _refuse_mask(secret: SecretStr) -> SecretStr:
    if secret.get_secret_value() == MASK:
        raise PydanticCustomError(
            "masked_secret", "must not be the mask that is shown in place of a secret; give the secret itself"
        )
    return secret


def _serialize_secret(secret: SecretStr, info: SerializationInfo) -> str:
    context = info.context
    is_revealed = isinstance(context, dict) and context.get("reveal_secrets") is True
    return secret.get_secret_value() if is_revealed else MASK


RevealableSecret: TypeAlias = Annotated[
    SecretStr,
    # A client that reads an endpoint and writes it back must not make the mask its secret.
    AfterValidator(_refuse_mask),
    PlainSerializer(_serialize_secret, return_type=str, when_used="json"),
]
"""A secret: dumped as JSON it is `MASK`, or itself under `REVEAL_SECRETS`; in Python it stays a `SecretStr`."""

# RFC 9110 §5.5, without its obsolete bytes and without tabs.
_HEADER_VALUE: Final = Matching(
    "^[!-~]([ -~]*[!-~])?$",
    "must be visible ASCII, without line breaks and without a space at either end",
)

SecretHeaderValue: TypeAlias = Annotated[
    RevealableSecret, Field(min_length=1, max_length=HEADER_VALUE_LIMIT), _HEADER_VALUE
]

BEARER_PREFIX: Final = "Bearer "

# RFC 6750 §2.1 allows fewer characters, but tokens with others are in use; a space would end the token.
BEARER_TOKEN: Final = Matching(
    "^[!-~]+$",
    'must be visible ASCII without spaces, and without the word "Bearer" before it',
)

BEARER_TOKEN_LIMIT: Final = HEADER_VALUE_LIMIT - len(BEARER_PREFIX)

SecretToken: TypeAlias = Annotated[RevealableSecret, Field(min_length=1, max_length=BEARER_TOKEN_LIMIT), BEARER_TOKEN]


def build_bearer_header(token: SecretStr) -> dict[str, str]:
    """The `authorization` header that carries `token` (RFC 6750 §2.1)."""
    return {"authorization": BEARER_PREFIX + token.get_secret_value()}
