"""What happens in care, in the contract's own words: its models, field for field and in its order.

The law of this module: nothing is guessed and nothing is added. A number in quotes is not a number, a field that
the contract does not have is refused, and nothing here shows its content in a `repr`, because all of it may be a
patient's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    Strict,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

_CONTRACT_FORM = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}", re.ASCII)
_ISO_8601 = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2}([.,]\d+)?)?(Z|[+-]\d{2}(:?\d{2})?)?", re.ASCII)
_CONTRACT_LENGTH = len("2024-01-01T00:00:00")
# RFC 8259, section 6: beyond it, receivers do not agree on the value.
_LARGEST_INTEROPERABLE_INTEGER = 2**53 - 1


class _Masked:
    def __repr__(self) -> str:
        return "**********"


class ClinicalModel(BaseModel):
    """A value of the contract: immutable, without unknown fields, and masked in every `repr` and error."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return [(None, _Masked())]


def read_datetime(value: object) -> datetime:
    """Read an ISO 8601 date-time, or take a `datetime`, as an aware UTC one in whole seconds.

    Without an offset it is UTC already; a fraction of a second is cut off.

    Raises:
        PydanticCustomError: it is neither, has no time of day, or is no moment of the years 1 to 9999 in UTC.
    """
    try:
        if isinstance(value, str) and _CONTRACT_FORM.fullmatch(value):
            # What nearly all are: at a fifth of the cost of the rest.
            return datetime.fromisoformat(f"{value}+00:00")
        moment = value if isinstance(value, datetime) else _parse_iso_8601(value)
        in_utc = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise PydanticCustomError(
            "contract_datetime", "must be an ISO 8601 date and time such as 2024-01-01T00:00:00"
        ) from None
    return in_utc.replace(microsecond=0)


def _parse_iso_8601(value: object) -> datetime:
    text = value.upper() if isinstance(value, str) else ""
    if not _ISO_8601.fullmatch(text):
        raise ValueError("not an ISO 8601 date and time")
    return datetime.fromisoformat(text)


def build_datetime(moment: datetime) -> str:
    """Build the contract's form of an aware UTC moment: `2024-01-01T00:00:00`, without an offset."""
    return moment.isoformat()[:_CONTRACT_LENGTH]


ContractDateTime = Annotated[
    datetime,
    PlainValidator(read_datetime),
    PlainSerializer(build_datetime, return_type=str, when_used="json"),
    WithJsonSchema(
        {
            "type": "string",
            "format": "date-time",
            "description": "An ISO 8601 date and time; without an offset it is UTC.",
            "examples": ["2024-01-01T00:00:00"],
        },
        mode="validation",
    ),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}$",
            "description": "An ISO 8601 date and time in UTC, without an offset.",
            "examples": ["2024-01-01T00:00:00"],
        },
        mode="serialization",
    ),
]
"""In Python an aware UTC `datetime`; on the wire `2024-01-01T00:00:00`, which is UTC. See `read_datetime`."""

Identifier = Annotated[str, Strict(), Field(min_length=1)]
Text = Annotated[str, Strict()]
Number = Annotated[int, Strict(), Field(ge=-_LARGEST_INTEROPERABLE_INTEGER, le=_LARGEST_INTEROPERABLE_INTEGER)]


class Speciality(ClinicalModel):
    """The field of medicine a consultation was about."""

    id: Number
    name: Text


class Consultation(ClinicalModel):
    """A patient's appointment or chat with a professional."""

    id: Identifier
    type: Literal["appointment", "chat"]
    start_date: ContractDateTime
    end_date: ContractDateTime
    speciality: Speciality


class Allergy(ClinicalModel):
    """An allergy in the patient's medical history."""

    id: Identifier
    name: Text
    description: Text


class Disease(ClinicalModel):
    """A disease in the patient's medical history."""

    id: Identifier
    name: Text
    description: Text


class Medication(ClinicalModel):
    """A medication in the patient's medical history, with how it is taken."""

    id: Identifier
    name: Text
    description: Text
    posology: Text


class PatientReference(ClinicalModel):
    """A patient, by the code that platform and organization share."""

    code: Identifier


class Patient(PatientReference):
    """A patient with the medical history."""

    allergies: list[Allergy]
    diseases: list[Disease]
    medications: list[Medication]


class Professional(ClinicalModel):
    """Who held the consultation. `avatar` is the URL of a picture."""

    id: Identifier
    name: Text
    avatar: Text


class Prescription(ClinicalModel):
    """What was prescribed, by its active substances."""

    id: Identifier
    active_substances: list[Text]


class SoapContent(ClinicalModel):
    """A report in the four parts of a SOAP note."""

    subjective: Text
    objective: Text
    assessment: Text
    plan: Text


class SoapReport(ClinicalModel):
    """A SOAP report of a consultation."""

    id: Identifier
    type: Literal["soap"]
    content: SoapContent


class SoapReportSent(ClinicalModel):
    """A SOAP report as it is sent to its patient."""

    type: Literal["soap"]
    content: SoapContent
    patient: PatientReference


# A report's `type` decides the structure of its `content`.
# A second type is its classes above, and `SoapReport | OtherReport` here.
Report = Annotated[SoapReport, Field(discriminator="type")]
ReportSent = Annotated[SoapReportSent, Field(discriminator="type")]
