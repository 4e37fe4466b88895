"""Lists in parts, newest first. A cursor names the last row that was shown, so rows that arrive shift nothing."""

from __future__ import annotations

import base64
from typing import Annotated, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from carehook.insights import ListView
from carehook.ledger.records import PageRequest

View = TypeVar("View")


_CURSOR: Final = "^[A-Za-z0-9_-]{21}[AQgw]$"
"""What 16 bytes look like in base64url, without padding."""


class PageQuery(BaseModel):
    """Which part of a list is asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    limit: Annotated[int, Field(ge=1, le=200, description="How many at most.")] = 50
    cursor: Annotated[
        str | None, Field(pattern=_CURSOR, description="`next_cursor` of the part before; leave out for the first.")
    ] = None

    def read(self, prefix: str) -> PageRequest:
        """What to ask the store for, in a list of ids with `prefix`."""
        return PageRequest(self.limit, None if self.cursor is None else _decode(self.cursor, prefix))


def build_list(page: ListView[View]) -> ListView[View]:
    """A list as clients see it, with a cursor that they cannot take for an id."""
    if page.next_cursor is None:
        return page
    return page.model_copy(update={"next_cursor": _encode(page.next_cursor)})


def _encode(identifier: str) -> str:
    digits = bytes.fromhex(identifier.partition("_")[2])
    return base64.urlsafe_b64encode(digits).rstrip(b"=").decode()


def _decode(cursor: str, prefix: str) -> str:
    return f"{prefix}_{base64.urlsafe_b64decode(cursor + '==').hex()}"
