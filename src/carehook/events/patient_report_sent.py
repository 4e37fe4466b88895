"""`patient_report_sent`: a professional sends a new report to a patient."""

from __future__ import annotations

from typing import ClassVar, Literal

from carehook.events.clinical import ReportSent
from carehook.events.envelope import Documentation, Event
from carehook.events.patient_consultation_finished import EXAMPLE_SOAP_CONTENT


class PatientReportSent(Event[ReportSent]):
    """A professional sent a new report to a patient."""

    documentation: ClassVar = Documentation(
        description="A professional sent a new report to a patient.",
        example={
            "type": "patient_report_sent",
            "occurred_on": 1704063600,
            "payload": {
                "type": "soap",
                "content": EXAMPLE_SOAP_CONTENT,
                "patient": {"code": "patient_code"},
            },
        },
        medical_fields=frozenset(
            {
                "payload.content.subjective",
                "payload.content.objective",
                "payload.content.assessment",
                "payload.content.plan",
                "payload.patient.code",
            }
        ),
        other_fields=frozenset({"type", "occurred_on", "payload.type"}),
    )

    type: Literal["patient_report_sent"] = "patient_report_sent"

    @property
    def patient_code(self) -> str:
        """The code of the patient whom it is about."""
        return self.payload.patient.code
