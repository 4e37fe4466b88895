"""The care API: what happened in care becomes the events that the contract promised.

Laws:
- A report and its `patient_report_sent`, and the end of a consultation and its `patient_consultation_finished`, are
  stored in one transaction: both or neither.
- A request that is repeated with the same id and content is answered as the first time and tells nobody twice; with
  other content it is refused.
- Nothing medical is made up: a patient whose history is not known cannot have a consultation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from pydantic import ValidationError

from carehook.clock import Clock
from carehook.events import AnyEvent, PatientConsultationFinished, PatientReportSent
from carehook.ids import ORGANIZATION, is_id
from carehook.intake.accept import Intake, store_event
from carehook.intake.consultations import (
    CARE_ID,
    Finish,
    History,
    NewConsultation,
    NewPrescription,
    NewReport,
    ProfessionalProfile,
)
from carehook.intake.recipients import freeze_event
from carehook.ledger.port import DuplicateKey, Ledger, Transaction
from carehook.ledger.records import (
    PLATFORM,
    ConsultationRow,
    PatientRow,
    PrescriptionRow,
    ProfessionalRow,
    ReportRow,
)
from carehook.refusals import Conflict, build_invalid, build_invalid_model, build_not_found

CLOCK_TOLERANCE: Final = timedelta(minutes=5)
"""How far the platform's clock may be ahead of ours."""


@dataclass(frozen=True, slots=True)
class Told:
    """The id of what was stored and the event that told of it."""

    id: str
    event_id: str


class CareRecords:
    """Keeps what the events are assembled from. Every method raises a `Refusal` where a rule is broken."""

    def __init__(self, ledger: Ledger, intake: Intake, clock: Clock) -> None:
        self._ledger = ledger
        self._intake = intake
        self._clock = clock

    async def put_patient(self, organization_id: str, code: str, history: History) -> None:
        """Store a patient's history, replacing the one that was there."""
        _check_id("code", code)
        async with self._organization(organization_id) as transaction:
            await transaction.care.put_patient(PatientRow(organization_id, code, history.model_dump(mode="json")))

    async def put_professional(self, professional_id: str, profile: ProfessionalProfile, scope: str = PLATFORM) -> None:
        """Store a professional for one organization (its id is the `scope`) or for the whole platform."""
        _check_id("id", professional_id)
        opening = self._ledger.transaction() if scope == PLATFORM else self._organization(scope)
        async with opening as transaction:
            await transaction.care.put_professional(
                ProfessionalRow(scope, professional_id, profile.name, profile.avatar)
            )

    async def begin_consultation(self, organization_id: str, new: NewConsultation) -> ConsultationRow:
        """Store a consultation."""
        now = self._clock()
        row = ConsultationRow(
            organization_id=organization_id,
            id=new.id or uuid4().hex,
            type=new.type,
            patient_code=new.patient_code,
            professional_id=new.professional_id,
            speciality=new.speciality.model_dump(mode="json"),
            start_date=new.start_date or now.replace(microsecond=0),
            end_date=None,
            finished_event_id=None,
            created_at=now,
        )
        is_dated = new.start_date is not None
        try:
            return await self._store_consultation(row, is_dated=is_dated)
        except DuplicateKey:
            # The same request came twice in this moment: now the first is found.
            return await self._store_consultation(row, is_dated=is_dated)

    async def send_report(self, organization_id: str, consultation_id: str, new: NewReport) -> Told:
        """Store a report and, with it, the event `patient_report_sent`."""
        async with self._consultation(organization_id, consultation_id) as (transaction, consultation):
            reports = await transaction.care.reports(organization_id, consultation_id)
            content = new.content.model_dump(mode="json")
            for present in reports:
                if present.id == new.id:
                    _check_repetition("report", (present.type, present.content), (new.type, content))
                    return Told(present.id, present.event_id)
            _check_open(consultation)
            now = self._clock()
            event = freeze_event(organization_id, _build_report_sent(new, content, consultation.patient_code, now), now)
            await store_event(transaction, event)
            report_id = new.id or uuid4().hex
            await transaction.care.add_report(
                ReportRow(organization_id, consultation_id, report_id, len(reports) + 1, new.type, content, event.id)
            )
        self._intake.count([event])
        return Told(report_id, event.id)

    async def prescribe(self, organization_id: str, consultation_id: str, new: NewPrescription) -> PrescriptionRow:
        """Store a prescription."""
        async with self._consultation(organization_id, consultation_id) as (transaction, consultation):
            prescriptions = await transaction.care.prescriptions(organization_id, consultation_id)
            for present in prescriptions:
                if present.id == new.id:
                    _check_repetition("prescription", list(present.active_substances), new.active_substances)
                    return present
            _check_open(consultation)
            row = PrescriptionRow(
                organization_id,
                consultation_id,
                new.id or uuid4().hex,
                len(prescriptions) + 1,
                new.active_substances,
            )
            await transaction.care.add_prescription(row)
        return row

    async def finish_consultation(self, organization_id: str, consultation_id: str, finish: Finish) -> Told:
        """End a consultation and, with it, store `patient_consultation_finished`, assembled from all of it."""
        async with self._consultation(organization_id, consultation_id) as (transaction, consultation):
            _check_open(consultation)
            now = self._clock()
            ended = dataclasses.replace(consultation, end_date=_decide_end(consultation, finish, now))
            event = freeze_event(organization_id, await _build_consultation_finished(transaction, ended, now), now)
            await store_event(transaction, event)
            await transaction.care.finish_consultation(dataclasses.replace(ended, finished_event_id=event.id))
        self._intake.count([event])
        return Told(consultation_id, event.id)

    async def _store_consultation(self, row: ConsultationRow, *, is_dated: bool) -> ConsultationRow:
        async with self._organization(row.organization_id) as transaction:
            present = await transaction.care.consultation(row.organization_id, row.id)
            if present is not None:
                return _repeat_consultation(present, row, is_dated=is_dated)
            if await transaction.care.patient(row.organization_id, row.patient_code) is None:
                raise build_invalid("patient_code", "names no patient; put the patient with their history first")
            if await transaction.care.professional(row.organization_id, row.professional_id) is None:
                raise build_invalid("professional_id", "names no professional; put the professional first")
            await transaction.care.add_consultation(row)
        return row

    @asynccontextmanager
    async def _organization(self, organization_id: str) -> AsyncIterator[Transaction]:
        if not is_id(ORGANIZATION, organization_id):
            raise build_not_found("organization", organization_id)
        async with self._ledger.transaction() as transaction:
            if not await transaction.organizations.existing([organization_id]):
                raise build_not_found("organization", organization_id)
            yield transaction

    @asynccontextmanager
    async def _consultation(
        self, organization_id: str, consultation_id: str
    ) -> AsyncIterator[tuple[Transaction, ConsultationRow]]:
        if not CARE_ID.matches(consultation_id):
            raise build_not_found("consultation", consultation_id)
        async with self._organization(organization_id) as transaction:
            consultation = await transaction.care.consultation(organization_id, consultation_id, lock=True)
            if consultation is None:
                raise build_not_found("consultation", consultation_id)
            yield transaction, consultation


def _check_id(field: str, value: str) -> None:
    if not CARE_ID.matches(value):
        raise build_invalid(field, CARE_ID.message)


def _decide_end(consultation: ConsultationRow, finish: Finish, now: datetime) -> datetime:
    """When the consultation ended. Raises `Invalid` rather than make up an end for one that has yet to begin."""
    start = consultation.start_date
    if finish.end_date is None and now < start - CLOCK_TOLERANCE:
        raise build_invalid("end_date", "is required, for the start_date of the consultation lies in the future")
    end_date = finish.end_date or max(now.replace(microsecond=0), start)
    if end_date < start:
        raise build_invalid("end_date", "must not lie before the start_date of the consultation")
    return end_date


def _check_open(consultation: ConsultationRow) -> None:
    if consultation.finished_event_id is not None:
        raise Conflict(f"The consultation is finished; the event {consultation.finished_event_id} told of it.")


def _check_repetition(kind: str, present: object, new: object) -> None:
    if present != new:
        raise Conflict(f"There is another {kind} with this id in the consultation. Use a new id, or leave it out.")


def _repeat_consultation(present: ConsultationRow, new: ConsultationRow, *, is_dated: bool) -> ConsultationRow:
    names = ["type", "patient_code", "professional_id", "speciality", *(["start_date"] if is_dated else [])]
    if any(getattr(present, name) != getattr(new, name) for name in names):
        raise Conflict("There is another consultation with this id. Use a new id, or leave it out.")
    return present


def _build_report_sent(new: NewReport, content: dict[str, Any], patient_code: str, now: datetime) -> AnyEvent:
    payload = {"type": new.type, "content": content, "patient": {"code": patient_code}}
    return PatientReportSent.model_validate({"occurred_on": int(now.timestamp()), "payload": payload})


async def _build_consultation_finished(
    transaction: Transaction, consultation: ConsultationRow, now: datetime
) -> AnyEvent:
    organization_id = consultation.organization_id
    patient = await transaction.care.patient(organization_id, consultation.patient_code)
    professional = await transaction.care.professional(organization_id, consultation.professional_id)
    if patient is None or professional is None:
        raise Conflict("The patient or the professional of this consultation is not there any more.")
    reports = await transaction.care.reports(organization_id, consultation.id)
    prescriptions = await transaction.care.prescriptions(organization_id, consultation.id)
    payload = {
        "consultation": {
            "id": consultation.id,
            "type": consultation.type,
            "start_date": consultation.start_date,
            "end_date": consultation.end_date,
            "speciality": consultation.speciality,
        },
        "reports": [{"id": each.id, "type": each.type, "content": each.content} for each in reports],
        "patient": {"code": patient.code, **patient.history},
        "professional": {"id": professional.id, "name": professional.name, "avatar": professional.avatar},
        "prescriptions": [{"id": each.id, "active_substances": list(each.active_substances)} for each in prescriptions],
    }
    try:
        return PatientConsultationFinished.model_validate({"occurred_on": int(now.timestamp()), "payload": payload})
    except ValidationError as error:
        refusal = build_invalid_model(error)
    raise refusal  # outside of `except`: pydantic's error, which holds what it refused, must not be its context
