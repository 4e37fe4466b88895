"""What is wrong with what was sent, told to people: which field, which rule. Never what was in the field.

Messages of pydantic's own are not passed on, for some repeat the input: the kinds below get a sentence, and the rest
are named by their kind. Messages of our own validators are: their law is that they do not repeat it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, get_args

from pydantic_core.core_schema import ErrorType

BODY: Final = "body"
"""The `field` of an error in the body as a whole."""

_MOST_ERRORS: Final = 50
_LONGEST_NAME: Final = 64

_RULES: Final[Mapping[str, str]] = {
    "missing": "is required",
    "extra_forbidden": "is not a field {where}",
    "string_type": "must be a string",
    "string_unicode": "must be valid Unicode",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "int_type": "must be an integer",
    "int_parsing": "must be an integer",
    "int_parsing_size": "must be an integer within the limits",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "union_tag_invalid": "must be one of {expected_tags}",
    "union_tag_not_found": "is required",
    "json_invalid": "is not JSON: {error}",
}
_PYDANTICS_OWN: Final = frozenset(get_args(ErrorType))
_ABOUT_LENGTH: Final = frozenset({"string_too_short", "too_short"})
_ABOUT_A_TAG: Final = frozenset({"union_tag_invalid", "union_tag_not_found"})


@dataclass(frozen=True, slots=True)
class FieldError:
    """One broken rule. `field` is a dotted path such as `payload.reports.0.type`, or `body` for all of it."""

    field: str
    rule: str

    def __str__(self) -> str:
        return f"{self.field} {self.rule}"


def build_field_errors(
    details: Sequence[Mapping[str, Any]], tags: Collection[str] = (), *, where: str
) -> list[FieldError]:
    """The broken rules, 50 at most, of what pydantic found.

    `tags` are the values by which the models choose among variants, as `basic` for an authentication: pydantic puts
    them into its locations, where they are no part of the path that the sender knows. `where` ends the sentence about
    a field that is not known: "of this request".
    """
    return [
        FieldError(_build_path(detail, tags), _build_rule(detail, where)) for detail in islice(details, _MOST_ERRORS)
    ]


def build_printable(name: str) -> str:
    """A short one-line name from whatever a stranger wrote."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:_LONGEST_NAME])


def _build_rule(detail: Mapping[str, Any], where: str) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _ABOUT_LENGTH and context["min_length"] == 1:
        return "must not be empty"
    if kind in _RULES:
        # A bound of a float is shown as it was written: 10000, not 10000.0.
        shown = {name: f"{value:g}" if isinstance(value, float) else value for name, value in context.items()}
        return _RULES[kind].format(**shown, where=where)
    return f"is not valid ({kind})" if kind in _PYDANTICS_OWN else str(detail["msg"])


def _build_path(detail: Mapping[str, Any], tags: Collection[str]) -> str:
    kind = detail["type"]
    if kind == "json_invalid":
        return BODY
    path = [build_printable(name) for name in _leave_tags_out(detail["loc"], tags)]
    if kind in _ABOUT_A_TAG:
        path.append(detail["ctx"]["discriminator"].strip("'"))
    return ".".join(path) or BODY


def _leave_tags_out(location: Sequence[int | str], tags: Collection[str]) -> list[str]:
    """The names on the way to a field. It and what comes behind a tag are none, whatever their names: `headers`."""
    *parents, last = [str(each) for each in location] or [""]
    kept: list[str] = []
    is_tag = False
    for name in parents:
        is_tag = name in tags and not is_tag
        if not is_tag:
            kept.append(name)
    return [name for name in (*kept, last) if name]
