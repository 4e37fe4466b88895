"""Lists in parts, newest first. A cursor names the last row that was shown, so rows that arrive shift nothing."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from carehook.ids import is_id
from carehook.insights import ListView
from carehook.ledger.records import PageRequest
from carehook.refusals import build_invalid

View = TypeVar("View")


class PageQuery(BaseModel):
    """Which part of a list is asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    limit: Annotated[int, Field(ge=1, le=200, description="How many at most.")] = 50
    cursor: Annotated[
        str | None, Field(max_length=100, description="`next_cursor` of the part before; leave out for the first.")
    ] = None

    def read(self, prefix: str) -> PageRequest:
        """What to ask the store for, in a list of ids with `prefix`. Raises `Invalid` on a cursor that is none."""
        if self.cursor is None:
            return PageRequest(self.limit)
        last = _decode(self.cursor)
        if last is None or not is_id(prefix, last):
            raise build_invalid("cursor", "must be a next_cursor that this list gave")
        return PageRequest(self.limit, last)


def build_list(page: ListView[View]) -> ListView[View]:
    """A list as clients see it, with a cursor that they cannot take for an id."""
    if page.next_cursor is None:
        return page
    cursor = base64.urlsafe_b64encode(page.next_cursor.encode()).rstrip(b"=").decode()
    return page.model_copy(update={"next_cursor": cursor})


def _decode(cursor: str) -> str | None:
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return None
