"""What Carehook refuses, and why, in words for the person who asked.

A use case raises a `Refusal`; the API answers it as a problem document and the command line prints it. Nothing has been
stored and nothing will be sent when one is raised. None of them shows what was in a field.
"""

import re
from collections.abc import Collection, Sequence
from typing import Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from carehook.events import FieldError

_LONGEST_NAME: Final = 64
_SUBJECT: Final = re.compile("^(Input|String|List|Tuple|Set|Dictionary|Value|Data) should ")


class Refusal(Exception):
    """A request that is not carried out. `detail` is a sentence for people; `errors` name the fields, if any."""

    def __init__(self, detail: str, errors: Sequence[FieldError] = ()) -> None:
        self.detail = detail
        self.errors = tuple(errors)
        super().__init__(detail)


class NotFound(Refusal):
    """What was asked for is not there."""


class Invalid(Refusal):
    """What was sent breaks a rule."""


class Conflict(Refusal):
    """The rules allow it, the state it is in does not."""


def build_not_found(kind: str, identifier: str) -> NotFound:
    """The refusal for an id that names nothing."""
    return NotFound(f"There is no {kind} {_build_printable(identifier)!r}.")


def build_invalid(field: str, rule: str) -> Invalid:
    """The refusal for one field that breaks one rule."""
    error = FieldError(field, rule)
    return Invalid(f"{error}.", [error])


def build_invalid_model(refusal: ValidationError, tags: Collection[str] = ()) -> Invalid:
    """The refusal for a model of ours that did not validate, without what was in it.

    `tags` are the values by which the model chooses among variants; see `build_field_error`.
    """
    details = refusal.errors(include_url=False, include_input=False)
    errors = [build_field_error(detail, tags) for detail in details]
    return Invalid("; ".join(str(error) for error in errors) + ".", errors)


def build_field_error(detail: ErrorDetails, tags: Collection[str] = ()) -> FieldError:
    """Which field and which rule, from one of pydantic's errors.

    `tags` are values by which a model chooses among variants, as `basic` for an authentication: pydantic puts them into
    its locations, behind the field, where they are no part of the path that the sender knows.
    """
    path = [_build_printable(str(part)) for part in _leave_tag_out(detail["loc"], tags)]
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path.append(detail["ctx"]["discriminator"].strip("'"))
    return FieldError(".".join(path) or "body", _build_rule(detail))


def _leave_tag_out(location: Sequence[int | str], tags: Collection[str]) -> Sequence[int | str]:
    """The location without the first of the tags in it; fields further on may have the name of one, as `headers`."""
    found = next((position for position, part in enumerate(location) if position and part in tags), None)
    return location if found is None else [*location[:found], *location[found + 1 :]]


def _build_rule(detail: ErrorDetails) -> str:
    match detail["type"]:
        case "missing" | "union_tag_not_found":
            return "is required"
        case "extra_forbidden":
            return "is not a field here"
        case "union_tag_invalid":
            # Pydantic's own sentence shows what was in the field.
            return f"must be one of {detail['ctx']['expected_tags']}"
    rule = _SUBJECT.sub("must ", detail["msg"].removeprefix("Value error, ")).rstrip(".")
    return f"is not valid: {rule}" if rule[:1].isupper() else rule


def _build_printable(name: str) -> str:
    """A short one-line name from what a stranger wrote."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:_LONGEST_NAME])
