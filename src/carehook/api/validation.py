"""What is wrong with a request's fields, in the words of `problems`: which field, which rule, never its content.

Messages of pydantic's own are not passed on, for some repeat the input; the kinds below get a sentence and the rest
are named by their kind. Messages of our own validators are: their law is that they do not repeat it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final, get_args

from pydantic_core.core_schema import ErrorType

from carehook.directory.authentication import Authentication
from carehook.events import BODY, FieldError

_MOST_ERRORS: Final = 50
_LONGEST_NAME: Final = 64
_LOCATIONS: Final = frozenset({"body", "query", "path", "header"})

_RULES: Final[Mapping[str, str]] = {
    "missing": "is required",
    "extra_forbidden": "is not a field of this request",
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
_ABOUT_THE_TAG: Final = frozenset({"union_tag_invalid", "union_tag_not_found"})
_PYDANTICS_OWN: Final = frozenset(get_args(ErrorType))


def _find_methods() -> frozenset[str]:
    union = get_args(Authentication)[0]
    return frozenset(get_args(method.model_fields["type"].annotation)[0] for method in get_args(union))


_METHODS: Final = _find_methods()


def build_field_errors(details: Sequence[Mapping[str, Any]]) -> list[FieldError]:
    """The broken rules, 50 at most, of what pydantic found in a request."""
    return [FieldError(_build_path(detail), _build_rule(detail)) for detail in islice(details, _MOST_ERRORS)]


def _build_rule(detail: Mapping[str, Any]) -> str:
    kind = detail["type"]
    if kind in _RULES:
        context = detail.get("ctx", {})
        # A bound of a float is shown as it was written: 10000, not 10000.0.
        return _RULES[kind].format(**{k: f"{v:g}" if isinstance(v, float) else v for k, v in context.items()})
    return f"is not valid ({kind})" if kind in _PYDANTICS_OWN else str(detail["msg"])


def _build_path(detail: Mapping[str, Any]) -> str:
    if detail["type"] == "json_invalid":
        return BODY
    where, *names = detail["loc"] or (BODY,)
    path = [where] if where not in _LOCATIONS else []
    for before, name in zip([where, *names], names, strict=False):
        # pydantic puts the chosen variant of a union into the path, where the sender knows of none.
        if not (before == "authentication" and name in _METHODS):
            path.append(_build_printable(str(name)))
    if detail["type"] in _ABOUT_THE_TAG:
        path.append("type")
    return ".".join(path) or BODY


def _build_printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name[:_LONGEST_NAME])
