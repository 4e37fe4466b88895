"""A broken rule is told in our own words or by its kind, never in words of a library that may show what was given."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, HttpUrl, ValidationError
from pydantic_core import PydanticCustomError

from carehook.field_errors import build_field_errors

SECRET = "s3cr3t"


def refuse_code(value: str) -> str:
    raise PydanticCustomError("code", "must be a code")


def fail(value: str) -> str:
    raise ValueError(f"{value} is not one of ours")


class Leaf(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["leaf"]
    leaf: dict[str, int] = {}


class Other(BaseModel):
    type: Literal["other"]


class Branch(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1)] = "x"
    long: Annotated[str, Field(min_length=2)] = "xx"
    pair: Annotated[list[int], Field(min_length=2)] = [1, 2]
    link: HttpUrl | None = None
    code: Annotated[str, AfterValidator(refuse_code)] = ""
    failing: Annotated[str, AfterValidator(fail)] = ""
    leaves: list[Annotated[Leaf | Other, Field(discriminator="type")]] = []


def tell(**fields: Any) -> list[str]:
    with pytest.raises(ValidationError) as refusal:
        Branch.model_validate(fields)
    return [str(error) for error in build_field_errors(refusal.value.errors(), {"leaf", "other"}, where="of a tree")]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": ""}, "name must not be empty"),
        ({"long": "x"}, "long must have at least 2 characters"),
        ({"pair": []}, "pair must have at least 2 entries"),
        ({"bark": 1}, "bark is not a field of a tree"),
        ({"code": SECRET}, "code must be a code"),
        ({"link": SECRET}, "link is not valid (url_parsing)"),
        ({"failing": SECRET}, "failing is not valid (value_error)"),
    ],
)
def test_a_rule_is_told_in_our_words_or_named_by_its_kind(fields: dict[str, Any], told: str) -> None:
    assert tell(**fields) == [told]


@pytest.mark.parametrize(
    ("leaf", "told"),
    [
        ({"type": SECRET}, "leaves.0.type must be one of 'leaf', 'other'"),
        ({}, "leaves.0.type is required"),
        ({"type": "leaf", "leaf": 5}, "leaves.0.leaf must be an object"),
        ({"type": "leaf", "leaf": {"leaf": "x"}}, "leaves.0.leaf.leaf must be an integer"),
        ({"type": "leaf", "other": 1}, "leaves.0.other is not a field of a tree"),
    ],
)
def test_a_path_is_what_the_sender_wrote_without_the_variant_that_was_chosen(leaf: Any, told: str) -> None:
    assert tell(leaves=[leaf]) == [told]
