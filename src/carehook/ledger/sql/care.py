"""Patients, professionals, and consultations with their reports and prescriptions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from carehook.ledger.port import DuplicateKey
from carehook.ledger.records import (
    PLATFORM,
    ConsultationRow,
    PatientRow,
    PrescriptionRow,
    ProfessionalRow,
    ReportRow,
)
from carehook.ledger.sql.statements import insert
from carehook.ledger.sql.tables import consultations, patients, prescriptions, professionals, reports


def _values(row: Any) -> dict[str, Any]:
    return {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}


class CareSql:
    """See `port.Care`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def put_patient(self, patient: PatientRow) -> None:
        """Store or replace a patient."""
        await self._put(patients, _values(patient))

    async def patient(self, organization_id: str, code: str) -> PatientRow | None:
        """One patient."""
        query = sa.select(patients).where(patients.c.organization_id == organization_id, patients.c.code == code)
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else PatientRow(**row._mapping)

    async def put_professional(self, professional: ProfessionalRow) -> None:
        """Store or replace a professional within their scope."""
        await self._put(professionals, _values(professional))

    async def professional(self, organization_id: str, professional_id: str) -> ProfessionalRow | None:
        """The professional as the organization knows them, else as the platform does."""
        query = (
            sa.select(professionals)
            .where(professionals.c.id == professional_id, professionals.c.scope.in_([organization_id, PLATFORM]))
            .order_by(professionals.c.scope == PLATFORM)
        )
        row = (await self._connection.execute(query)).first()
        return None if row is None else ProfessionalRow(**row._mapping)

    async def add_consultation(self, consultation: ConsultationRow) -> None:
        """Store a new consultation."""
        await self._add(consultations, _values(consultation))

    async def consultation(
        self, organization_id: str, consultation_id: str, *, lock: bool = False
    ) -> ConsultationRow | None:
        """One consultation, locked where asked."""
        query = sa.select(consultations).where(
            consultations.c.organization_id == organization_id, consultations.c.id == consultation_id
        )
        if lock:
            query = query.with_for_update(key_share=True)
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else ConsultationRow(**row._mapping)

    async def finish_consultation(self, consultation: ConsultationRow) -> None:
        """Store when it ended and the event that told of it."""
        await self._connection.execute(
            consultations.update()
            .where(
                consultations.c.organization_id == consultation.organization_id,
                consultations.c.id == consultation.id,
            )
            .values(end_date=consultation.end_date, finished_event_id=consultation.finished_event_id)
        )

    async def add_report(self, report: ReportRow) -> None:
        """Store a new report."""
        await self._add(reports, _values(report))

    async def reports(self, organization_id: str, consultation_id: str) -> Sequence[ReportRow]:
        """The reports of a consultation in their order."""
        return [ReportRow(**row._mapping) for row in await self._parts(reports, organization_id, consultation_id)]

    async def add_prescription(self, prescription: PrescriptionRow) -> None:
        """Store a new prescription."""
        await self._add(prescriptions, _values(prescription))

    async def prescriptions(self, organization_id: str, consultation_id: str) -> Sequence[PrescriptionRow]:
        """The prescriptions of a consultation in their order."""
        rows = await self._parts(prescriptions, organization_id, consultation_id)
        return [PrescriptionRow(**row._mapping) for row in rows]

    async def _parts(
        self, table: sa.Table, organization_id: str, consultation_id: str
    ) -> Sequence[sa.Row[tuple[Any, ...]]]:
        query = (
            sa.select(table)
            .where(table.c.organization_id == organization_id, table.c.consultation_id == consultation_id)
            .order_by(table.c.position)
        )
        return (await self._connection.execute(query)).all()

    async def _add(self, table: sa.Table, values: dict[str, Any]) -> None:
        try:
            await self._connection.execute(table.insert(), values)
        except sa.exc.IntegrityError:
            raise DuplicateKey(f"one of that id was just stored in {table.name}") from None

    async def _put(self, table: sa.Table, values: dict[str, Any]) -> None:
        statement = insert(self._connection, table).values(values)
        keys = [column.name for column in table.primary_key]
        replaced = {name: statement.excluded[name] for name in values if name not in keys}
        await self._connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=replaced))
