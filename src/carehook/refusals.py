"""What Carehook refuses, and why, in words for the person who asked.

A use case raises a `Refusal`; the API answers it as a problem document and the command line prints it. Nothing has been
stored and nothing will be sent when one is raised. None of them shows what was in a field.
"""

from collections.abc import Collection, Sequence

from pydantic import ValidationError

from carehook.field_errors import FieldError, build_field_errors, build_printable


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
    return NotFound(f"There is no {kind} {build_printable(identifier)!r}.")


def build_invalid(field: str, rule: str) -> Invalid:
    """The refusal for one field that breaks one rule."""
    error = FieldError(field, rule)
    return Invalid(f"{error}.", [error])


def build_invalid_model(refusal: ValidationError, tags: Collection[str] = ()) -> Invalid:
    """The refusal for a model of ours that did not validate, without what was in it.

    `tags` are the values by which the model chooses among variants; see `build_field_errors`.
    """
    details = refusal.errors(include_url=False, include_input=False)
    errors = build_field_errors(details, tags, where="here")
    return Invalid("; ".join(str(error) for error in errors) + ".", errors)
