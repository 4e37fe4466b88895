"""What the platform tells the care API: a patient's history, who treats, and what is added to a consultation.

The law of this module: what is wrong is refused here, by field, and nothing of it is shown. Rules that ask the store
are in `care.py`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, StringConstraints
from pydantic_core import PydanticCustomError

from carehook.directory.authentication.fields import Matching
from carehook.events import (
    Allergy,
    ContractDateTime,
    Disease,
    Medication,
    SoapContent,
    Speciality,
)

# Ids are parts of URLs: there a slash parts them, and clients resolve `.` and `..` before they send. Bytes of a URL
# that are not UTF-8 all arrive as U+FFFD, so ids with it would be taken for one another.
CARE_ID: Final = Matching(
    r"^(?!\.{1,2}$)[^\x00-\x1f\x7f-\x9f\u2028\u2029\ufffd/]{1,200}$",
    "must have 1 to 200 characters of valid UTF-8 on one line, without '/' or U+FFFD, and be neither '.' nor '..'",
)

CareId = Annotated[str, Strict(), CARE_ID]
"""An id that the platform gives."""

EARLIEST: Final = datetime(1900, 1, 1, tzinfo=UTC)


def _check_plausible(moment: datetime) -> datetime:
    """`moment` itself. Raises `PydanticCustomError` for what programs write where they know no date, as the year 1."""
    if moment < EARLIEST:
        raise PydanticCustomError("care_datetime", "must not lie before 1900")
    return moment


CareDateTime = Annotated[ContractDateTime, AfterValidator(_check_plausible)]

Line = Annotated[str, StringConstraints(strict=True, max_length=2000, pattern=r"^[^\x00]*$")]


class _CareModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class History(_CareModel):
    """A patient's medical history, whole: it replaces the one that was there."""

    allergies: list[Allergy]
    diseases: list[Disease]
    medications: list[Medication]


class ProfessionalProfile(_CareModel):
    """A professional as consultations show them. `avatar` is the URL of a picture."""

    name: Line
    avatar: Line


class NewConsultation(_CareModel):
    """A consultation that begins, now where `start_date` is left out."""

    id: CareId | None = None
    type: Literal["appointment", "chat"]
    patient_code: CareId
    professional_id: CareId
    speciality: Speciality
    start_date: CareDateTime | None = None


class NewSoapReport(_CareModel):
    """A SOAP report that is sent to the patient."""

    id: CareId | None = None
    type: Literal["soap"]
    content: SoapContent


# A report's `type` decides the structure of its `content`: another type joins here with its own model.
NewReport = NewSoapReport


class NewPrescription(_CareModel):
    """A prescription, by its active substances."""

    id: CareId | None = None
    active_substances: Annotated[list[Line], Field(min_length=1, max_length=100)]


class Finish(_CareModel):
    """The end of a consultation, now where `end_date` is left out."""

    end_date: CareDateTime | None = None
