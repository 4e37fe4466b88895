"""What the demo tells Carehook, and what must arrive of it: two reports, a consultation's end, the contract's examples.

Everything here is invented, and nobody has a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from carehook.cli.demo.service import Service
from carehook.events import CATALOGUE, build_body

PATIENT: Final = "example-patient"
PROFESSIONAL: Final = "example-professional"
CONSULTATION: Final = "example-consultation"

HISTORY: Final[dict[str, Any]] = {
    "allergies": [{"id": "allergy-1", "name": "Penicillin", "description": "Rash within an hour"}],
    "diseases": [{"id": "disease-1", "name": "Asthma", "description": "Mild, since childhood"}],
    "medications": [
        {
            "id": "medication-1",
            "name": "Salbutamol",
            "description": "Inhaler, 100 µg a puff",
            "posology": "2 puffs when short of breath",
        }
    ],
}
PROFILE: Final = {"name": "Physician on duty", "avatar": "https://images.example/physician.png"}
SPECIALITY: Final = {"id": 1, "name": "General practice"}
BEGUN: Final = "2024-01-01T09:00:00"
ENDED: Final = "2024-01-01T09:20:00"
REPORTS: Final[tuple[dict[str, Any], ...]] = (
    {
        "id": "report-1",
        "type": "soap",
        "content": {
            "subjective": "Short of breath since the morning.",
            "objective": "Wheezing on both sides, oxygen saturation 96 %.",
            "assessment": "Mild exacerbation of asthma.",
            "plan": "Inhaler every four hours, call again tomorrow.",
        },
    },
    {
        "id": "report-2",
        "type": "soap",
        "content": {
            "subjective": "Better after the first dose.",
            "objective": "Hardly any wheezing, oxygen saturation 98 %.",
            "assessment": "Responds to treatment.",
            "plan": "Go on for three days.",
        },
    },
)
PRESCRIPTIONS: Final[tuple[dict[str, Any], ...]] = (
    {"id": "prescription-1", "active_substances": ["salbutamol"]},
    {"id": "prescription-2", "active_substances": ["budesonide", "formoterol"]},
)


@dataclass(frozen=True, slots=True)
class Expected:
    """An event that must arrive: `body` to the byte, or `payload` where Carehook chooses when it occurred."""

    event_id: str
    event_type: str
    what: str
    payload: Any = field(repr=False)
    body: bytes | None = field(repr=False, default=None)


def tell_story(service: Service, organization_id: str, token: str, tell: Callable[[str], None]) -> Iterator[Expected]:
    """Drive one consultation through the care API, then publish the contract's examples; each event as it is told."""

    def call(method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> Any:
        return service.call(token, method, f"/v1{path}", body, headers)

    consultations = f"/organizations/{organization_id}/consultations"
    this = f"{consultations}/{CONSULTATION}"
    call("PUT", f"/professionals/{PROFESSIONAL}", PROFILE)
    call("PUT", f"/organizations/{organization_id}/patients/{PATIENT}", HISTORY)
    tell("a professional, and a patient with allergies, diseases and medications")
    call("POST", consultations, _build_consultation())
    tell("a consultation begins")
    for report in REPORTS:
        told = call("POST", f"{this}/reports", report)
        tell(f"{report['id']} is sent to the patient")
        payload = {"type": report["type"], "content": report["content"], "patient": {"code": PATIENT}}
        yield Expected(told["event_id"], "patient_report_sent", report["id"], payload)
    for prescription in PRESCRIPTIONS:
        call("POST", f"{this}/prescriptions", prescription)
        tell(f"{prescription['id']} is written")
    told = call("POST", f"{this}/finish", {"end_date": ENDED})
    tell("the consultation is finished")
    yield Expected(told["event_id"], "patient_consultation_finished", "consultation", build_finished_payload())
    for entry in CATALOGUE.values():
        key = {"idempotency-key": f"demo-{entry.name}"}
        told = call("POST", f"/organizations/{organization_id}/events", dict(entry.example), key)
        tell(f"the contract's example of {entry.name} is published")
        body = build_body(entry.model.model_validate(entry.example))
        yield Expected(told["id"], entry.name, "example", entry.example["payload"], body)


def build_finished_payload() -> dict[str, Any]:
    """The payload of `patient_consultation_finished` that the consultation of the story must make."""
    return {
        "consultation": {
            "id": CONSULTATION,
            "type": "appointment",
            "start_date": BEGUN,
            "end_date": ENDED,
            "speciality": SPECIALITY,
        },
        "reports": list(REPORTS),
        "patient": {"code": PATIENT, **HISTORY},
        "professional": {"id": PROFESSIONAL, **PROFILE},
        "prescriptions": list(PRESCRIPTIONS),
    }


def _build_consultation() -> dict[str, Any]:
    return {
        "id": CONSULTATION,
        "type": "appointment",
        "patient_code": PATIENT,
        "professional_id": PROFESSIONAL,
        "speciality": SPECIALITY,
        "start_date": BEGUN,
    }
