"""`kill -9` in the middle of telling: both what was told and its event are stored, or neither is."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from carehook.application import Application
from carehook.bootstrap import open_carehook
from carehook.config import Settings
from carehook.intake.consultations import Finish, History, NewConsultation, NewSoapReport, ProfessionalProfile
from tests.servers.interrupted_care import REPORT
from tests.stores import (
    build_settings,
    create_organization,
    list_deliveries,
    list_events,
    register,
)

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(params=["embedded", "postgres"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    url = None
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_server").url(request.getfixturevalue("postgres_database"))
    return build_settings(tmp_path / "home", url)


async def begin_consultation(carehook: Application) -> str:
    organization = await create_organization(carehook)
    await register(carehook, organization)
    await carehook.care.put_patient(organization, "code", History(allergies=[], diseases=[], medications=[]))
    await carehook.care.put_professional("hash", ProfessionalProfile(name="Dr. Example", avatar=""))
    consultation = NewConsultation.model_validate(
        {
            "id": "consultation",
            "type": "chat",
            "patient_code": "code",
            "professional_id": "hash",
            "speciality": {"id": 1, "name": "Medicina General"},
        }
    )
    await carehook.care.begin_consultation(organization, consultation)
    return organization


async def tell_until_killed(settings: Settings, method: str, organization: str) -> None:
    """Let another process tell, and kill it when `method` of the ledger has just returned in its transaction."""
    environment = {"PATH": os.environ["PATH"], "CAREHOOK_HOME": str(settings.home)}
    if settings.database_url is not None:
        environment["CAREHOOK_DATABASE_URL"] = settings.database_url.get_secret_value()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.servers.interrupted_care", method, organization),
        cwd=REPOSITORY,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"standing still\n"
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("method", ["EventsSql.add", "DeliveriesSql.add", "CareSql.add_report"])
async def test_a_report_and_its_event_are_gone_together(settings: Settings, method: str) -> None:
    async with open_carehook(settings, create=True) as carehook:
        organization = await begin_consultation(carehook)
    await tell_until_killed(settings, method, organization)
    async with open_carehook(settings) as carehook:
        assert await list_events(carehook, organization) == []
        assert await list_deliveries(carehook, organization) == []
        async with carehook.ledger.snapshot() as snapshot:
            assert await snapshot.care.reports(organization, "consultation") == []
        # The platform, which got no answer, repeats: now there are both.
        told = await carehook.care.send_report(organization, "consultation", NewSoapReport.model_validate(REPORT))
        assert [event.id for event in await list_events(carehook, organization)] == [told.event_id]


async def test_the_end_of_a_consultation_and_its_event_are_gone_together(settings: Settings) -> None:
    async with open_carehook(settings, create=True) as carehook:
        organization = await begin_consultation(carehook)
    await tell_until_killed(settings, "CareSql.finish_consultation", organization)
    async with open_carehook(settings) as carehook:
        assert await list_events(carehook, organization) == []
        async with carehook.ledger.snapshot() as snapshot:
            consultation = await snapshot.care.consultation(organization, "consultation")
        assert consultation is not None
        assert (consultation.end_date, consultation.finished_event_id) == (None, None)
        told = await carehook.care.finish_consultation(organization, "consultation", Finish())
        assert [event.id for event in await list_events(carehook, organization)] == [told.event_id]
