"""What is wrong with an event, told to people: which field, which rule. Never what was in the field.

Only the kinds of error listed here get a sentence; any other is named by its kind alone, so that no message of a future
validator can carry a patient's data out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from pydantic import ValidationError
from pydantic_core import ErrorDetails

BODY = "body"
"""The `field` of an error in the body as a whole."""

_MOST_ERRORS = 50
_MOST_ERRORS_IN_MESSAGE = 3
_LONGEST_NAME = 64

_RULES: Mapping[str, str] = {
    "missing": "is required",
    "extra_forbidden": "is not a field of the contract",
    "string_type": "must be a string",
    "string_unicode": "must be valid Unicode",
    "string_too_short": "must not be empty",
    "int_type": "must be an integer",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "literal_error": "must be {expected}",
    "union_tag_invalid": "must be one of {expected_tags}",
    "union_tag_not_found": "is required",
    "json_invalid": "is not JSON: {error}",
    "contract_datetime": "{msg}",
    "unix_time": "{msg}",
}
_ABOUT_THE_TAG = frozenset({"union_tag_invalid", "union_tag_not_found"})


@dataclass(frozen=True, slots=True)
class FieldError:
    """One broken rule. `field` is a dotted path such as `payload.reports.0.type`, or `body` for all of it."""

    field: str
    rule: str

    def __str__(self) -> str:
        return f"{self.field} {self.rule}"


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
    """Build the error that people see from pydantic's.

    `tags` are the values by which the models choose among variants; pydantic puts them into its locations, where they
    are no part of the path that the sender of the event knows.
    """
    details = refusal.errors(include_url=False, include_input=False)
    errors = [_build_field_error(detail, tags) for detail in islice(details, _MOST_ERRORS)]
    is_unknown_type = details[0]["type"] == "union_tag_invalid" and not details[0]["loc"]
    return UnknownEventType(errors) if is_unknown_type else InvalidEvent(errors)


def _build_field_error(detail: ErrorDetails, tags: Collection[str]) -> FieldError:
    kind = detail["type"]
    rule = _RULES.get(kind, f"is not valid ({kind})").format(msg=detail["msg"], **detail.get("ctx", {}))
    return FieldError(_build_path(detail, tags), rule)


def _build_path(detail: ErrorDetails, tags: Collection[str]) -> str:
    *parents, last = detail["loc"] or ("",)
    path = [str(name) for name in parents if name not in tags]
    path.append(_build_printable(str(last)))
    if detail["type"] in _ABOUT_THE_TAG:
        path.append("type")
    return ".".join(name for name in path if name) or BODY


def _build_printable(name: str) -> str:
    """Build a short one-line name from an unknown field's, which is whatever a stranger wrote."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:_LONGEST_NAME])
