"""The catalogue: every event type there is, with its model, example, medical fields and description.

A new event type is one file beside this one and its name in `AnyEvent`; tests fail until its documentation
is whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, get_args

from carehook.events.envelope import Event
from carehook.events.patient_consultation_finished import PatientConsultationFinished
from carehook.events.patient_report_sent import PatientReportSent

AnyEvent = PatientConsultationFinished | PatientReportSent


@dataclass(frozen=True, slots=True)
class EventType:
    """An entry of the catalogue. `medical_fields` are dotted paths; through a list they go without an index."""

    name: str
    model: type[AnyEvent]
    description: str
    example: Mapping[str, Any]
    medical_fields: frozenset[str]

    @property
    def json_schema(self) -> dict[str, Any]:
        """The JSON Schema (draft 2020-12) of the body that is sent, made anew at each call."""
        return self.model.model_json_schema(mode="serialization")


def _build_entry(model: type[AnyEvent]) -> EventType:
    documentation = model.documentation
    return EventType(
        name=get_name(model),
        model=model,
        description=documentation.description,
        example=documentation.example,
        medical_fields=documentation.medical_fields,
    )


def get_name(model: type[Event[Any]]) -> str:
    """The name of a model's event type, as it stands in the envelope's `type`."""
    (name,) = get_args(model.model_fields["type"].annotation)
    return str(name)


CATALOGUE: Mapping[str, EventType] = MappingProxyType(
    {get_name(model): _build_entry(model) for model in get_args(AnyEvent)}
)
