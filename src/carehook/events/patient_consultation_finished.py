"""`patient_consultation_finished`: a professional finishes a patient's consultation."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from carehook.events.clinical import (
    ClinicalModel,
    Consultation,
    Patient,
    Prescription,
    Professional,
    Report,
)
from carehook.events.envelope import Documentation, Event


class ConsultationFinished(ClinicalModel):
    """The consultation with all that came of it, and the patient's medical history."""

    consultation: Consultation
    reports: list[Report]
    patient: Patient
    professional: Professional
    prescriptions: list[Prescription]


def _build_example_entry(kind: str, number: int, identifier: str | None = None) -> dict[str, Any]:
    return {
        "id": identifier or f"{kind}-{number}-id",
        "name": f"{kind} {number} name",
        "description": f"{kind} {number} description",
    }


def _build_example_medication(number: int) -> dict[str, Any]:
    return {**_build_example_entry("medication", number), "posology": f"medication {number} posology"}


EXAMPLE_SOAP_CONTENT = {
    "subjective": "Patient-reported information, including the chief complaint, history of present illness, "
    "and a review of systems.",
    "objective": "Clinically observed and measured information, including vital signs and a physical exam.",
    "assessment": "The healthcare provider's assessment or diagnosis based on the subjective and objective "
    "information.",
    "plan": "The proposed plan of action, including medications, further tests, and follow-up instructions.",
}

_EXAMPLE_PRESCRIPTION = {
    "id": "prescription-1-id",
    "active_substances": ["substance_1", "substance_2", "substance_3"],
}

# The contract's own example, in which two identifiers occur twice.
_EXAMPLE: dict[str, Any] = {
    "type": "patient_consultation_finished",
    "occurred_on": 1704063600,
    "payload": {
        "consultation": {
            "id": "id_consultation",
            "type": "appointment",
            "start_date": "2024-01-01T00:00:00",
            "end_date": "2024-01-01T01:00:00",
            "speciality": {"id": 1, "name": "Medicina General"},
        },
        "reports": [
            {"id": f"report-{number}-id", "type": "soap", "content": EXAMPLE_SOAP_CONTENT} for number in (1, 2)
        ],
        "patient": {
            "code": "patient_code",
            "allergies": [_build_example_entry("allergy", 1), _build_example_entry("allergy", 2)],
            "diseases": [
                _build_example_entry("disease", 1),
                _build_example_entry("disease", 2, "allergy-2-id"),
            ],
            "medications": [_build_example_medication(1), _build_example_medication(2)],
        },
        "professional": {"id": "hash", "name": "professional name", "avatar": "https://image.url/"},
        "prescriptions": [_EXAMPLE_PRESCRIPTION, _EXAMPLE_PRESCRIPTION],
    },
}

_MEDICAL_FIELDS = frozenset(
    {
        "payload.consultation.start_date",
        "payload.consultation.end_date",
        "payload.consultation.speciality.id",
        "payload.consultation.speciality.name",
        "payload.reports.content.subjective",
        "payload.reports.content.objective",
        "payload.reports.content.assessment",
        "payload.reports.content.plan",
        "payload.patient.code",
        "payload.patient.allergies.id",
        "payload.patient.allergies.name",
        "payload.patient.allergies.description",
        "payload.patient.diseases.id",
        "payload.patient.diseases.name",
        "payload.patient.diseases.description",
        "payload.patient.medications.id",
        "payload.patient.medications.name",
        "payload.patient.medications.description",
        "payload.patient.medications.posology",
        "payload.professional.id",
        "payload.professional.name",
        "payload.professional.avatar",
        "payload.prescriptions.active_substances",
    }
)

_OTHER_FIELDS = frozenset(
    {
        "type",
        "occurred_on",
        "payload.consultation.id",
        "payload.consultation.type",
        "payload.reports.id",
        "payload.reports.type",
        "payload.prescriptions.id",
    }
)


class PatientConsultationFinished(Event[ConsultationFinished]):
    """A professional finished a patient's consultation."""

    documentation: ClassVar = Documentation(
        description="A professional finished a patient's consultation.",
        example=_EXAMPLE,
        medical_fields=_MEDICAL_FIELDS,
        other_fields=_OTHER_FIELDS,
    )

    type: Literal["patient_consultation_finished"] = "patient_consultation_finished"

    @property
    def patient_code(self) -> str:
        """The code of the patient whom it is about."""
        return self.payload.patient.code
