"""What is wrong with a request's fields, in the words of `problems`: which field, which rule, never its content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from carehook.directory.authentication import AUTHENTICATION_TYPES
from carehook.field_errors import FieldError, build_field_errors

_PARTS: Final = frozenset({"body", "query", "path", "header"})


def build_request_errors(details: Sequence[Mapping[str, Any]]) -> list[FieldError]:
    """The broken rules, 50 at most, of what FastAPI found in a request."""
    of_fields = [{**detail, "loc": _leave_part_out(detail["loc"])} for detail in details]
    return build_field_errors(of_fields, AUTHENTICATION_TYPES, where="of this request")


def _leave_part_out(location: Sequence[int | str]) -> Sequence[int | str]:
    """The location without the part of the request that FastAPI puts before it."""
    return location[1:] if location and location[0] in _PARTS else location
