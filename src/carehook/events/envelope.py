"""The envelope every event travels in: `type`, `occurred_on`, `payload`, in this order, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

_LATEST = 253_402_300_799  # 9999-12-31T23:59:59Z, the last second that has a four-digit year

Payload = TypeVar("Payload")


def read_unix_time(value: object) -> int | float:
    """Take a Unix time in seconds, as the number it is: an integer stays one, and so does a fraction.

    Raises:
        PydanticCustomError: it is no number (true is none), or not between 0 and the end of the year 9999.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LATEST:
        return value
    raise PydanticCustomError("unix_time", "must be a Unix time in seconds: a number from 0 to 253402300799")


UnixTime = Annotated[
    int | float,
    PlainValidator(read_unix_time),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": _LATEST, "description": "Unix time in seconds."}),
]


@dataclass(frozen=True, slots=True)
class Documentation:
    """What the catalogue says of an event type, beside its model.

    `medical_fields` holds the dotted path of every field with medical or personal data of the patient or the
    professional, `other_fields` all the rest, so that a new field belongs to neither until someone decides. A path
    goes through a list without an index: `payload.reports.content.plan`.
    """

    description: str
    example: dict[str, Any]
    medical_fields: frozenset[str]
    other_fields: frozenset[str]


def _require_every_key(schema: dict[str, Any]) -> None:
    schema["required"] = list(schema["properties"])


class Event(BaseModel, Generic[Payload]):
    """Something that happened. An event type is a subclass that fixes `type` and the model of `payload`."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, json_schema_extra=_require_every_key
    )

    documentation: ClassVar[Documentation]

    type: str
    occurred_on: UnixTime
    payload: Payload

    @property
    def patient_code(self) -> str | None:
        """The code of the patient whom it is about; None where it is about none."""
        return None
