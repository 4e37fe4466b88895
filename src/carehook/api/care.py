"""The care API: the platform tells what happens in care, and Carehook assembles the events from it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from carehook.api.context import Caller, Carehook, ConsultationId, OrganizationId, PatientCode, ProfessionalId
from carehook.api.routes import MemberRoute, TokenRoute, build_router
from carehook.events import Allergy, ContractDateTime, Disease, Medication, SoapContent, Speciality
from carehook.intake.consultations import (
    Finish,
    History,
    NewConsultation,
    NewPrescription,
    NewReport,
    ProfessionalProfile,
)
from carehook.ledger.records import PLATFORM

members = build_router(MemberRoute, "Care")
callers = build_router(TokenRoute, "Care")

_CONSULTATION = "/v1/organizations/{organization_id}/consultations/{consultation_id}"


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class ProfessionalView(_View):
    """A professional as consultations show them."""

    id: str
    name: str
    avatar: str


class PatientView(_View):
    """A patient with the medical history as it is stored now."""

    code: str
    allergies: list[Allergy]
    diseases: list[Disease]
    medications: list[Medication]


class ConsultationView(_View):
    """A consultation. Once it is finished, `finished_event_id` names the event that told of it."""

    id: str
    type: Literal["appointment", "chat"]
    patient_code: str
    professional_id: str
    speciality: Speciality
    start_date: ContractDateTime
    end_date: ContractDateTime | None
    finished_event_id: str | None
    created_at: datetime


class ReportView(_View):
    """A report that was sent, and the event that tells of it."""

    id: str
    type: Literal["soap"]
    content: SoapContent
    event_id: Annotated[str, Field(description="The `patient_report_sent`.")]


class PrescriptionView(_View):
    """A prescription."""

    id: str
    active_substances: list[str]


class FinishedView(_View):
    """A consultation that is finished, and the event that tells of it."""

    id: str
    event_id: Annotated[str, Field(description="The `patient_consultation_finished`.")]


@callers.put("/v1/professionals/{professional_id}")
async def put_professional(
    professional_id: ProfessionalId, profile: ProfessionalProfile, caller: Caller, carehook: Carehook
) -> ProfessionalView:
    """Store a professional, replacing the one of this id.

    With a publisher's token its organization alone sees them, with an operator's every organization that has not
    stored its own.
    """
    await carehook.care.put_professional(professional_id, profile, caller.organization_id or PLATFORM)
    return ProfessionalView(id=professional_id, name=profile.name, avatar=profile.avatar)


@members.put("/v1/organizations/{organization_id}/patients/{patient_code}", responses={409: {}})
async def put_patient(
    organization_id: OrganizationId, patient_code: PatientCode, history: History, carehook: Carehook
) -> PatientView:
    """Store a patient's medical history whole, replacing the one that was there."""
    await carehook.care.put_patient(organization_id, patient_code, history)
    return PatientView(
        code=patient_code,
        allergies=history.allergies,
        diseases=history.diseases,
        medications=history.medications,
    )


@members.post("/v1/organizations/{organization_id}/consultations", status_code=201, responses={409: {}})
async def begin_consultation(
    organization_id: OrganizationId, new: NewConsultation, carehook: Carehook
) -> ConsultationView:
    """Begin a consultation. Its patient and its professional must be stored already.

    Repeated with the same id and content it answers as the first time; with other content it is a conflict.
    """
    row = await carehook.care.begin_consultation(organization_id, new)
    return ConsultationView.model_validate(row, from_attributes=True)


@members.post(f"{_CONSULTATION}/reports", status_code=201, responses={409: {}})
async def send_report(
    organization_id: OrganizationId, consultation_id: ConsultationId, new: NewReport, carehook: Carehook
) -> ReportView:
    """Store a report and, in the same transaction, the event `patient_report_sent`.

    Repeated with the same id and content it answers as the first time and tells nobody twice.
    """
    told = await carehook.care.send_report(organization_id, consultation_id, new)
    return ReportView(id=told.id, type=new.type, content=new.content, event_id=told.event_id)


@members.post(f"{_CONSULTATION}/prescriptions", status_code=201, responses={409: {}})
async def prescribe(
    organization_id: OrganizationId, consultation_id: ConsultationId, new: NewPrescription, carehook: Carehook
) -> PrescriptionView:
    """Store a prescription; the event at the end of the consultation holds it."""
    row = await carehook.care.prescribe(organization_id, consultation_id, new)
    return PrescriptionView(id=row.id, active_substances=list(row.active_substances))


@members.post(f"{_CONSULTATION}/finish", responses={409: {}})
async def finish_consultation(
    organization_id: OrganizationId, consultation_id: ConsultationId, carehook: Carehook, finish: Finish | None = None
) -> FinishedView:
    """End a consultation and, in the same transaction, store the event `patient_consultation_finished`.

    It is assembled from all that was stored of it. A second finish is a conflict that names the event.
    """
    told = await carehook.care.finish_consultation(organization_id, consultation_id, finish or Finish())
    return FinishedView(id=told.id, event_id=told.event_id)
