"""Lists in parts, newest first. A cursor names the last row that was shown, so rows that arrive shift nothing."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from carehook.cursors import CURSOR_PATTERN, decode_cursor
from carehook.insights import build_list
from carehook.ledger.records import PageRequest

__all__ = ["PageQuery", "build_list"]


class PageQuery(BaseModel):
    """Which part of a list is asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    limit: Annotated[int, Field(ge=1, le=200, description="How many at most.")] = 50
    cursor: Annotated[
        str | None,
        Field(pattern=CURSOR_PATTERN, description="`next_cursor` of the part before; leave out for the first."),
    ] = None

    def read(self, prefix: str) -> PageRequest:
        """What to ask the store for, in a list of ids with `prefix`."""
        return PageRequest(self.limit, None if self.cursor is None else decode_cursor(self.cursor, prefix))
