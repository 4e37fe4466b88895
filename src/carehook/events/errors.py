"""What is wrong with an event, told to people: which field, which rule. Never what was in the field."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from pydantic import ValidationError

from carehook.field_errors import FieldError, build_field_errors

_MOST_ERRORS_IN_MESSAGE: Final = 3


class InvalidEvent(ValueError):
    """An event, or a batch of them, that breaks the contract. `errors` are 50 at most, and show no input value."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        self.errors = list(errors)
        shown = "; ".join(str(error) for error in self.errors[:_MOST_ERRORS_IN_MESSAGE])
        unshown = len(self.errors) - _MOST_ERRORS_IN_MESSAGE
        super().__init__(f"{shown}; and {unshown} more" if unshown > 0 else shown)


class UnknownEventType(InvalidEvent):
    """An event whose `type` is not in the catalogue."""


def build_invalid_event(refusal: ValidationError, tags: Collection[str]) -> InvalidEvent:
    """Build the error that people see from pydantic's. For `tags` see `build_field_errors`."""
    details = refusal.errors(include_url=False, include_input=False)
    errors = build_field_errors(details, tags, where="of the contract")
    is_unknown_type = details[0]["type"] == "union_tag_invalid" and not details[0]["loc"]
    return UnknownEventType(errors) if is_unknown_type else InvalidEvent(errors)
