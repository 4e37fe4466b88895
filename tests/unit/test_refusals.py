"""A refusal names the field and the rule, and never shows what was in the field."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from carehook.directory.endpoints import NewEndpoint
from carehook.directory.organizations import NewOrganization
from carehook.intake.consultations import Finish, NewConsultation, NewPrescription
from carehook.refusals import Invalid, build_invalid, build_invalid_model, build_not_found

METHODS = ("none", "basic", "bearer", "headers", "oauth2_client_credentials")
SECRET = "hunter2"


def refuse(model: type[BaseModel], values: dict[str, Any]) -> Invalid:
    with pytest.raises(ValidationError) as raised:
        model.model_validate(values)
    return build_invalid_model(raised.value, METHODS)


@pytest.mark.parametrize(
    ("model", "values", "sentence"),
    [
        (NewOrganization, {}, "name is required."),
        (NewOrganization, {"name": 7}, "name must be a string."),
        (NewOrganization, {"name": ""}, "name must not be empty."),
        (NewOrganization, {"name": " "}, "name must be on one line, without control characters, and not of spaces"),
        (NewOrganization, {"name": "x", "notes": 1}, "notes is not a field here."),
        (NewPrescription, {"active_substances": []}, "active_substances must not be empty."),
        (NewEndpoint, {"url": "u", "authentication": {"type": SECRET}}, "authentication.type must be one of 'none'"),
        (NewEndpoint, {"url": "u", "authentication": {"token": SECRET}}, "authentication.type is required."),
        (
            NewEndpoint,
            {"url": "u", "authentication": {"type": "basic", "username": "u"}},
            "authentication.password is required.",
        ),
        (
            NewEndpoint,
            {"url": "u", "authentication": {"type": "headers", "headers": {"x-key": SECRET + "\n"}}},
            "authentication.headers.x-key must be visible ASCII",
        ),
        (
            NewEndpoint,
            {"url": "u", "authentication": {"type": "bearer", "token": "t", "basic": SECRET}},
            "authentication.basic is not a field here.",
        ),
        (NewOrganization, {"name": "x", "basic": 1}, "basic is not a field here."),
        (
            NewEndpoint,
            {"url": "u", "signature_value": SECRET + "\n"},
            "signature_value must be visible ASCII, without line breaks",
        ),
        (NewEndpoint, {"url": "u", "signature_scheme": SECRET}, "signature_scheme must be 'v1' or 'v1a'."),
        (Finish, {"end_date": SECRET}, "end_date must be an ISO 8601 date and time"),
        (NewConsultation, {"id": SECRET + "/"}, "id must have 1 to 200 characters"),
    ],
)
def test_it_names_the_field_and_the_rule_alone(model: type[BaseModel], values: dict[str, Any], sentence: str) -> None:
    refusal = refuse(model, values)
    assert str(refusal).startswith(sentence)
    assert str(refusal).endswith(".")
    assert SECRET not in str(refusal)
    assert refusal.errors[0].field == sentence.split()[0]


def test_every_broken_rule_is_named() -> None:
    refusal = refuse(NewConsultation, {"type": "call", "extra": 1})
    named = {error.field for error in refusal.errors}
    assert named == {"type", "patient_code", "professional_id", "speciality", "extra"}


def test_a_strangers_name_of_a_field_stays_short_and_on_one_line() -> None:
    (error,) = refuse(NewOrganization, {"name": "x", "a\nb\x1b" + "x" * 1000: 1}).errors
    assert error.field.startswith("a?b?xxx")
    assert len(error.field) == 64


def test_an_id_that_names_nothing_stays_short() -> None:
    assert str(build_not_found("event", "evt_1")) == "There is no event 'evt_1'."
    assert len(str(build_not_found("event", "e" * 5000))) < 100
    assert "\x1b" not in str(build_not_found("event", "\x1b[2J"))


def test_one_field_and_one_rule() -> None:
    refusal = build_invalid("url", "must begin with https://")
    assert str(refusal) == refusal.detail == "url must begin with https://."
    assert [(error.field, error.rule) for error in refusal.errors] == [("url", "must begin with https://")]
