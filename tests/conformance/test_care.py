"""The care API's rows: stored, replaced where they may be, listed in their order."""

from dataclasses import replace

import pytest

from carehook.ledger.port import DuplicateKey
from carehook.ledger.records import (
    PLATFORM,
    ConsultationRow,
    PatientRow,
    PrescriptionRow,
    ProfessionalRow,
    ReportRow,
)
from tests.conformance.store import NOW, ORGANIZATION, SECOND, Store, build_event

CONSULTATION = ConsultationRow(
    organization_id=ORGANIZATION,
    id="c_1",
    type="chat",
    patient_code="P-1",
    professional_id="dr_1",
    speciality={"id": "1", "name": "Cardiología"},
    start_date=NOW,
    end_date=None,
    finished_event_id=None,
    created_at=NOW,
)


async def test_a_patient_is_replaced(store: Store) -> None:
    await store.add_organization()
    patient = PatientRow(ORGANIZATION, "P-1", {"allergies": ["pollen"]})
    async with store.ledger.transaction() as tx:
        await tx.care.put_patient(patient)
        await tx.care.put_patient(replace(patient, history={"allergies": []}))
        assert await tx.care.patient(ORGANIZATION, "P-1") == replace(patient, history={"allergies": []})
        assert await tx.care.patient("org_2", "P-1") is None


async def test_a_professional_is_as_the_organization_knows_them_else_as_the_platform_does(store: Store) -> None:
    platform = ProfessionalRow(PLATFORM, "dr_1", "Dr. Everywhere", "https://a.example")
    own = ProfessionalRow(ORGANIZATION, "dr_1", "Dr. Here", "https://b.example")
    async with store.ledger.transaction() as tx:
        await tx.care.put_professional(own)
        await tx.care.put_professional(platform)
        assert await tx.care.professional(ORGANIZATION, "dr_1") == own
        assert await tx.care.professional("org_2", "dr_1") == platform
        assert await tx.care.professional("org_2", "dr_2") is None


async def test_a_consultation_is_stored_once(store: Store) -> None:
    await store.add_organization()
    async with store.ledger.transaction() as tx:
        await tx.care.add_consultation(CONSULTATION)
    with pytest.raises(DuplicateKey):
        async with store.ledger.transaction() as tx:
            await tx.care.add_consultation(CONSULTATION)
    async with store.ledger.transaction() as tx:
        assert await tx.care.consultation(ORGANIZATION, "c_1", lock=True) == CONSULTATION
        assert await tx.care.consultation("org_2", "c_1") is None


async def test_finishing_stores_the_end_and_the_event(store: Store) -> None:
    await store.add_organization()
    event = build_event()
    finished = replace(CONSULTATION, end_date=NOW + SECOND, finished_event_id=event.id)
    async with store.ledger.transaction() as tx:
        await tx.care.add_consultation(CONSULTATION)
        await tx.events.add([event])
        await tx.care.finish_consultation(finished)
        assert await tx.care.consultation(ORGANIZATION, "c_1") == finished


async def test_reports_and_prescriptions_are_listed_in_their_order(store: Store) -> None:
    await store.add_organization()
    event = build_event()
    first = ReportRow(ORGANIZATION, "c_1", "r_z", 1, "soap", {"subjective": "…"}, event.id)
    second = replace(first, id="r_a", position=2)
    prescribed = PrescriptionRow(ORGANIZATION, "c_1", "p_z", 1, ["paracetamol"])
    also = replace(prescribed, id="p_a", position=2, active_substances=["ibuprofen", "omeprazole"])
    async with store.ledger.transaction() as tx:
        await tx.care.add_consultation(CONSULTATION)
        await tx.events.add([event])
        for report in (second, first):
            await tx.care.add_report(report)
        for prescription in (also, prescribed):
            await tx.care.add_prescription(prescription)
    async with store.ledger.snapshot() as tx:
        assert await tx.care.reports(ORGANIZATION, "c_1") == [first, second]
        assert await tx.care.prescriptions(ORGANIZATION, "c_1") == [prescribed, also]
        assert await tx.care.reports("org_2", "c_1") == []


async def test_a_report_and_a_prescription_are_stored_once(store: Store) -> None:
    await store.add_organization()
    event = build_event()
    async with store.ledger.transaction() as tx:
        await tx.care.add_consultation(CONSULTATION)
        await tx.events.add([event])
        await tx.care.add_report(ReportRow(ORGANIZATION, "c_1", "r_1", 1, "soap", {}, event.id))
        await tx.care.add_prescription(PrescriptionRow(ORGANIZATION, "c_1", "p_1", 1, []))
    with pytest.raises(DuplicateKey):
        async with store.ledger.transaction() as tx:
            await tx.care.add_report(ReportRow(ORGANIZATION, "c_1", "r_1", 2, "soap", {}, event.id))
    with pytest.raises(DuplicateKey):
        async with store.ledger.transaction() as tx:
            await tx.care.add_prescription(PrescriptionRow(ORGANIZATION, "c_1", "p_1", 2, []))
