"""The catalogue is whole: a new event type, or a new field of one, fails here until it is documented."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema_rs
import pytest
from pydantic import BaseModel

from carehook import events
from carehook.events import CATALOGUE, AnyEvent, EventType
from carehook.events.codec import _find_tags

CONTRACT = Path(__file__).parents[1] / "vectors" / "contract"

every_type = pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE)


def find_models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from find_models(part)


def find_leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        nested = list(find_models(field.annotation))
        if not nested:
            yield prefix + name
        for part in nested:
            yield from find_leaves(part, f"{prefix}{name}.")


def test_every_event_of_the_union_is_in_the_catalogue_under_its_own_name() -> None:
    assert [entry.model for entry in CATALOGUE.values()] == list(get_args(AnyEvent))
    assert all(entry.name == name for name, entry in CATALOGUE.items())


@every_type
def test_each_leaf_is_decided_to_be_medical_or_not(entry: EventType) -> None:
    documentation = entry.model.documentation
    assert not documentation.medical_fields & documentation.other_fields
    assert set(find_leaves(entry.model)) == documentation.medical_fields | documentation.other_fields
    assert entry.medical_fields == documentation.medical_fields != frozenset()


@every_type
def test_the_example_is_the_contracts_own(entry: EventType) -> None:
    assert entry.example == json.loads((CONTRACT / f"{entry.name}.json").read_bytes())


@every_type
def test_the_description_is_a_sentence_of_its_own(entry: EventType) -> None:
    assert entry.description.endswith(".")
    assert [other.description for other in CATALOGUE.values()].count(entry.description) == 1


@every_type
def test_the_json_schema_takes_the_example_and_demands_exactly_its_keys(entry: EventType) -> None:
    validator = jsonschema_rs.Draft202012Validator(entry.json_schema)
    assert validator.is_valid(entry.example)
    assert entry.json_schema["required"] == ["type", "occurred_on", "payload"]
    assert entry.json_schema["additionalProperties"] is False
    assert not validator.is_valid({**entry.example, "occurred_on": "1"})
    assert not validator.is_valid({key: value for key, value in entry.example.items() if key != "type"})


def test_no_field_bears_the_name_of_a_variant() -> None:
    """An error's path is pydantic's without the variants' names, so a field of such a name would vanish from it."""
    models = [model for model in vars(events).values() if isinstance(model, type) and issubclass(model, BaseModel)]
    fields = {name for model in models for name in model.model_fields}
    assert _find_tags() == {"patient_consultation_finished", "patient_report_sent", "soap"}
    assert not fields & _find_tags()
