"""Field errors of the API: dotted paths that the sender knows, rules for people, nothing of the input."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from carehook.api.validation import build_request_errors
from carehook.directory.endpoints import NewEndpoint
from carehook.field_errors import FieldError
from carehook.intake.consultations import NewConsultation, NewPrescription

SECRET = "s3cr3t"


def find_errors(model: type[BaseModel], body: Any) -> list[FieldError]:
    with pytest.raises(ValidationError) as refusal:
        model.model_validate(body)
    return build_request_errors([{**detail, "loc": ("body", *detail["loc"])} for detail in refusal.value.errors()])


@pytest.mark.parametrize(
    ("model", "body", "expected"),
    [
        (NewEndpoint, {}, FieldError("url", "is required")),
        (NewEndpoint, {"url": 5}, FieldError("url", "must be a string")),
        (NewEndpoint, {"url": "u", "max_in_flight": 0}, FieldError("max_in_flight", "must be at least 1")),
        (NewEndpoint, {"url": "u", "max_in_flight": 1001}, FieldError("max_in_flight", "must be at most 1000")),
        (NewEndpoint, {"url": "u", "max_in_flight": 1.5}, FieldError("max_in_flight", "must be an integer")),
        (NewEndpoint, {"url": "u", "max_in_flight": True}, FieldError("max_in_flight", "must be an integer")),
        (NewEndpoint, {"url": "u", "rate_limit": 0.009}, FieldError("rate_limit", "must be at least 0.01")),
        (NewEndpoint, {"url": "u", "rate_limit": 10_001}, FieldError("rate_limit", "must be at most 10000")),
        (NewEndpoint, {"url": "u", "rate_limit": "5"}, FieldError("rate_limit", "must be a number")),
        (NewEndpoint, {"url": "u", "ordering": "strict"}, FieldError("ordering", "must be 'none' or 'patient'")),
        (NewEndpoint, {"url": "u", "event_types": "x"}, FieldError("event_types", "must be a list")),
        (NewEndpoint, {"url": "u", "authentication": {}}, FieldError("authentication.type", "is required")),
        (
            NewEndpoint,
            {"url": "u", "authentication": {"type": "basic", "username": "u", "password": 5}},
            FieldError("authentication.password", "must be a string"),
        ),
        (
            NewEndpoint,
            {"url": "u", "authentication": {"type": "headers", "headers": {"headers": 5}}},
            FieldError("authentication.headers.headers", "must be a string"),
        ),
        (NewPrescription, {"active_substances": []}, FieldError("active_substances", "must not be empty")),
        (NewPrescription, {"active_substances": ["", 5]}, FieldError("active_substances.1", "must be a string")),
        (NewConsultation, [], FieldError("body", "must be an object")),
    ],
)
def test_a_field_is_named_as_the_sender_knows_it(model: type[BaseModel], body: Any, expected: FieldError) -> None:
    assert find_errors(model, body)[0] == expected


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (NewEndpoint, {"url": "u", "authentication": {"type": SECRET}}),
        (NewEndpoint, {"url": "u", "signature_value": f"{SECRET}\n"}),
        (NewEndpoint, {"url": "u", "description": f"{SECRET}\x00"}),
        (NewEndpoint, {"url": "u", "authentication": {"type": "bearer", "token": f"Bearer {SECRET}"}}),
        (NewConsultation, {"type": SECRET, "id": f"{SECRET}/", "start_date": SECRET, "speciality": SECRET}),
    ],
)
def test_no_rule_repeats_what_was_in_the_field(model: type[BaseModel], body: Any) -> None:
    assert SECRET not in repr(find_errors(model, body))


def test_at_most_fifty_errors_are_told() -> None:
    assert len(find_errors(NewPrescription, {"active_substances": [5] * 90})) == 50


def test_the_name_of_an_unknown_field_is_shown_short_and_on_one_line() -> None:
    (error,) = find_errors(NewPrescription, {"active_substances": ["a"], "\x1b[31m" + "x" * 500: 1})
    assert error.field.startswith("?[31mx")
    assert len(error.field) == 64
    assert error.rule == "is not a field of this request"
