"""The care API: what it was told becomes the contract's events, whole, in order, once, and both or neither."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from carehook.application import Application
from carehook.bootstrap import open_carehook
from carehook.config import Settings
from carehook.intake.care import CareRecords, Told
from carehook.intake.consultations import (
    Finish,
    History,
    NewConsultation,
    NewPrescription,
    NewSoapReport,
    ProfessionalProfile,
)
from carehook.ledger.records import ConsultationRow
from carehook.refusals import Conflict, Invalid, NotFound
from tests.stores import (
    NOON,
    PowerCut,
    SetClock,
    WatchedLedger,
    build_settings,
    create_organization,
    list_deliveries,
    list_events,
    read_body,
    register,
)

EXAMPLE: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "contract" / "patient_consultation_finished.json").read_text()
)["payload"]
SOAP = {"subjective": "s", "objective": "o", "assessment": "a", "plan": "p"}
UNKNOWN = "org_018cc251f4007000800000000000dead"

on_one_store = pytest.mark.parametrize("site", ["embedded"], indirect=True)


@dataclass
class Site:
    """A Carehook with an organization that receives, a patient and a professional."""

    carehook: Application
    settings: Settings
    clock: SetClock
    organization: str

    @property
    def care(self) -> CareRecords:
        return self.carehook.care

    async def begin(self, **fields: Any) -> ConsultationRow:
        return await self.care.begin_consultation(self.organization, build_consultation(**fields))

    async def read_event(self, event_id: str) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(await read_body(self.carehook, event_id))
        return parsed

    async def count(self) -> tuple[int, int]:
        """How many events and deliveries there are."""
        events = await list_events(self.carehook, self.organization)
        return len(events), len(await list_deliveries(self.carehook, self.organization))


@pytest.fixture(params=["embedded", "postgres"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    url = None
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_server").url(request.getfixturevalue("postgres_database"))
    settings = build_settings(tmp_path / "home", url)
    clock = SetClock()
    async with open_carehook(settings, create=True, clock=clock) as carehook:
        organization = await create_organization(carehook)
        await register(carehook, organization)
        await carehook.care.put_patient(organization, "code", build_history())
        await carehook.care.put_professional("hash", ProfessionalProfile(name="Dr. Example", avatar=""))
        yield Site(carehook, settings, clock, organization)


def build_history(*allergies: str) -> History:
    return History(
        allergies=[{"id": each, "name": each, "description": ""} for each in allergies],  # type: ignore[misc]
        diseases=[],
        medications=[],
    )


def build_consultation(**fields: Any) -> NewConsultation:
    values = {
        "id": "consultation",
        "type": "chat",
        "patient_code": "code",
        "professional_id": "hash",
        "speciality": {"id": 1, "name": "Medicina General"},
        "start_date": "2024-01-01T11:00:00",
    }
    return NewConsultation.model_validate(values | fields)


def build_report(identifier: str | None = None, plan: str = "p") -> NewSoapReport:
    return NewSoapReport.model_validate({"id": identifier, "type": "soap", "content": SOAP | {"plan": plan}})


def build_prescription(identifier: str | None = None, *substances: str) -> NewPrescription:
    return NewPrescription(id=identifier, active_substances=list(substances or ["ibuprofen"]))


# ------------------------------------------------------------------------------------ what is told


async def test_the_contracts_example_goes_in_and_comes_out(site: Site) -> None:
    """But for its second prescription, which has the first one's id and content: that is a repetition."""
    care, organization = site.care, site.organization
    patient = dict(EXAMPLE["patient"])
    code = patient.pop("code")
    consultation = dict(EXAMPLE["consultation"])
    end_date = consultation.pop("end_date")
    professional = dict(EXAMPLE["professional"])
    await care.put_patient(organization, code, History.model_validate(patient))
    await care.put_professional(professional.pop("id"), ProfessionalProfile(**professional))
    await care.begin_consultation(
        organization, NewConsultation(**consultation, patient_code=code, professional_id="hash")
    )
    for report in EXAMPLE["reports"]:
        told = await care.send_report(organization, consultation["id"], NewSoapReport.model_validate(report))
        assert await site.read_event(told.event_id) == {
            "type": "patient_report_sent",
            "occurred_on": int(NOON.timestamp()),
            "payload": {"type": "soap", "content": report["content"], "patient": {"code": code}},
        }
    for prescription in EXAMPLE["prescriptions"]:
        await care.prescribe(organization, consultation["id"], NewPrescription(**prescription))
    told = await care.finish_consultation(
        organization, consultation["id"], Finish.model_validate({"end_date": end_date})
    )
    assert await site.read_event(told.event_id) == {
        "type": "patient_consultation_finished",
        "occurred_on": int(NOON.timestamp()),
        "payload": EXAMPLE | {"prescriptions": EXAMPLE["prescriptions"][:1]},
    }
    assert await site.count() == (3, 3)


async def test_everything_is_told_in_the_order_in_which_it_came(site: Site) -> None:
    await site.begin()
    names = ["b", "a", "10", "9", "z", "0"]
    for name in names:
        await site.care.send_report(site.organization, "consultation", build_report(name, plan=name))
        await site.care.prescribe(site.organization, "consultation", build_prescription(name, name, "x", name))
    told = await site.care.finish_consultation(site.organization, "consultation", Finish())
    payload = (await site.read_event(told.event_id))["payload"]
    assert [(each["id"], each["content"]["plan"]) for each in payload["reports"]] == [(name, name) for name in names]
    assert payload["prescriptions"] == [{"id": name, "active_substances": [name, "x", name]} for name in names]


@on_one_store
async def test_nothing_told_is_nothing_made_up(site: Site) -> None:
    await site.begin()
    told = await site.care.finish_consultation(site.organization, "consultation", Finish())
    payload = (await site.read_event(told.event_id))["payload"]
    assert (payload["reports"], payload["prescriptions"]) == ([], [])
    assert payload["patient"] == {"code": "code", "allergies": [], "diseases": [], "medications": []}


@on_one_store
async def test_history_and_names_are_those_known_at_the_end_and_stay_so(site: Site) -> None:
    await site.begin()
    await site.care.put_patient(site.organization, "code", build_history("penicillin"))
    await site.care.put_professional("hash", ProfessionalProfile(name="Dr. Renamed", avatar=""))
    told = await site.care.finish_consultation(site.organization, "consultation", Finish())
    await site.care.put_patient(site.organization, "code", build_history("nuts"))
    payload = (await site.read_event(told.event_id))["payload"]
    assert [each["id"] for each in payload["patient"]["allergies"]] == ["penicillin"]
    assert payload["professional"] == {"id": "hash", "name": "Dr. Renamed", "avatar": ""}


@on_one_store
async def test_an_unusual_text_comes_out_as_it_went_in(site: Site) -> None:
    text = "naïve ☤ \U0001fa7a 'quoted' \"twice\" \\ \u2028 \u0000 \r\n\t <b>&amp;</b>" + "x" * 100_000
    await site.begin()
    await site.care.send_report(site.organization, "consultation", build_report("r", plan=text))
    told = await site.care.finish_consultation(site.organization, "consultation", Finish())
    assert (await site.read_event(told.event_id))["payload"]["reports"][0]["content"]["plan"] == text


async def test_a_history_with_every_character_that_json_has_is_kept(site: Site) -> None:
    await site.care.put_patient(site.organization, "code", build_history("a\u0000b", "☤", '"\\'))
    await site.begin()
    told = await site.care.finish_consultation(site.organization, "consultation", Finish())
    allergies = (await site.read_event(told.event_id))["payload"]["patient"]["allergies"]
    assert [each["id"] for each in allergies] == ["a\u0000b", "☤", '"\\']


# ------------------------------------------------------------------------------------ dates


async def test_dates_are_told_in_utc_without_an_offset(site: Site) -> None:
    for given, told in (
        ("2024-01-01T11:00:00", "2024-01-01T11:00:00"),
        ("2024-01-01T11:00:00Z", "2024-01-01T11:00:00"),
        ("2024-01-01T12:30:00+01:30", "2024-01-01T11:00:00"),
        ("2024-01-01T11:00:00.999999", "2024-01-01T11:00:00"),
        ("1900-01-01T00:00:00", "1900-01-01T00:00:00"),
    ):
        await site.begin(id=given, start_date=given)
        finish = Finish.model_validate({"end_date": "2024-01-01T13:00:00+01:00"})
        event_id = (await site.care.finish_consultation(site.organization, given, finish)).event_id
        consultation = (await site.read_event(event_id))["payload"]["consultation"]
        assert (consultation["start_date"], consultation["end_date"]) == (told, "2024-01-01T12:00:00")


@on_one_store
async def test_without_dates_a_consultation_lasts_from_begin_to_finish(site: Site) -> None:
    site.clock.now = datetime(2024, 1, 1, 12, 0, 0, 900_000, tzinfo=UTC)
    await site.begin(start_date=None)
    site.clock.advance(minutes=20)
    told = await site.care.finish_consultation(site.organization, "consultation", Finish())
    consultation = (await site.read_event(told.event_id))["payload"]["consultation"]
    assert (consultation["start_date"], consultation["end_date"]) == ("2024-01-01T12:00:00", "2024-01-01T12:20:00")


@on_one_store
async def test_an_end_before_the_start_is_refused_and_the_consultation_stays_open(site: Site) -> None:
    await site.begin()
    finish = Finish.model_validate({"end_date": "2024-01-01T10:59:59"})
    with pytest.raises(Invalid) as raised:
        await site.care.finish_consultation(site.organization, "consultation", finish)
    assert raised.value.errors[0].field == "end_date"
    assert await site.count() == (0, 0)
    await site.care.send_report(site.organization, "consultation", build_report())


@on_one_store
async def test_a_platform_whose_clock_is_a_little_ahead_can_finish(site: Site) -> None:
    await site.begin(start_date="2024-01-01T12:05:00")
    told = await site.care.finish_consultation(site.organization, "consultation", Finish())
    assert (await site.read_event(told.event_id))["payload"]["consultation"]["end_date"] == "2024-01-01T12:05:00"


@on_one_store
async def test_no_end_is_made_up_for_a_consultation_of_the_future(site: Site) -> None:
    await site.begin(start_date="2024-01-01T12:05:01")
    with pytest.raises(Invalid, match="end_date is required"):
        await site.care.finish_consultation(site.organization, "consultation", Finish())
    assert await site.count() == (0, 0)


# ------------------------------------------------------------------------------------ repetition


async def test_a_report_that_is_repeated_is_told_once(site: Site) -> None:
    await site.begin()
    first = await site.care.send_report(site.organization, "consultation", build_report("r"))
    assert await site.care.send_report(site.organization, "consultation", build_report("r")) == first
    with pytest.raises(Conflict, match="another report with this id"):
        await site.care.send_report(site.organization, "consultation", build_report("r", plan="else"))
    assert await site.count() == (1, 1)
    await site.care.finish_consultation(site.organization, "consultation", Finish())
    assert await site.care.send_report(site.organization, "consultation", build_report("r")) == first


async def test_a_report_that_comes_twice_at_once_is_told_once(site: Site) -> None:
    await site.begin()
    async with open_carehook(site.settings, clock=site.clock) as other:
        told = await asyncio.gather(
            *(
                one.send_report(site.organization, "consultation", build_report("r"))
                for one in [site.care, other.care] * 4
            )
        )
    assert len(set(told)) == 1
    assert await site.count() == (1, 1)


async def test_reports_that_come_at_once_are_all_told(site: Site) -> None:
    await site.begin()
    async with open_carehook(site.settings, clock=site.clock) as other:
        await asyncio.gather(
            *(
                one.send_report(site.organization, "consultation", build_report(plan=str(number)))
                for number, one in enumerate([site.care, other.care] * 5)
            )
        )
    told = await site.care.finish_consultation(site.organization, "consultation", Finish())
    reports = (await site.read_event(told.event_id))["payload"]["reports"]
    assert sorted(each["content"]["plan"] for each in reports) == [str(number) for number in range(10)]
    assert len({each["id"] for each in reports}) == 10


@on_one_store
async def test_a_prescription_that_is_repeated_is_there_once(site: Site) -> None:
    await site.begin()
    first = await site.care.prescribe(site.organization, "consultation", build_prescription("p", "a"))
    again = await site.care.prescribe(site.organization, "consultation", build_prescription("p", "a"))
    assert (again.id, list(again.active_substances)) == (first.id, list(first.active_substances))
    with pytest.raises(Conflict, match="another prescription with this id"):
        await site.care.prescribe(site.organization, "consultation", build_prescription("p", "b"))
    told = await site.care.finish_consultation(site.organization, "consultation", Finish())
    assert len((await site.read_event(told.event_id))["payload"]["prescriptions"]) == 1


@on_one_store
async def test_a_consultation_that_is_repeated_is_the_same(site: Site) -> None:
    first = await site.begin()
    site.clock.advance(minutes=1)
    assert await site.begin() == first
    assert await site.begin(start_date=None) == first
    changes: list[dict[str, Any]] = [
        {"type": "appointment"},
        {"start_date": "2024-01-01T11:00:01"},
        {"speciality": {"id": 2, "name": "Medicina General"}},
        {"patient_code": "other"},
        {"professional_id": "other"},
    ]
    for change in changes:
        with pytest.raises(Conflict, match="another consultation with this id"):
            await site.begin(**change)


async def test_a_consultation_that_comes_twice_at_once_is_the_same(site: Site) -> None:
    async with open_carehook(site.settings, clock=site.clock) as other:
        begun = await asyncio.gather(
            *(
                one.begin_consultation(site.organization, build_consultation(id=f"c-{number}"))
                for number in range(20)
                for one in (site.care, other.care)
            )
        )
    assert begun[::2] == begun[1::2]


async def test_after_the_end_nothing_can_be_added_and_the_refusal_names_the_event(site: Site) -> None:
    await site.begin()
    told = await site.care.finish_consultation(site.organization, "consultation", Finish())
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: site.care.finish_consultation(site.organization, "consultation", Finish()),
        lambda: site.care.send_report(site.organization, "consultation", build_report()),
        lambda: site.care.prescribe(site.organization, "consultation", build_prescription()),
    ]
    for call in calls:
        with pytest.raises(Conflict, match=told.event_id):
            await call()
    assert await site.count() == (1, 1)


async def test_a_consultation_that_is_finished_many_times_at_once_is_told_once(site: Site) -> None:
    async with open_carehook(site.settings, clock=site.clock) as other:
        for number in range(5):
            await site.begin(id=f"c-{number}")
            answers = await asyncio.gather(
                *(
                    one.finish_consultation(site.organization, f"c-{number}", Finish())
                    for one in [site.care, other.care] * 3
                ),
                return_exceptions=True,
            )
            assert sorted(type(answer).__name__ for answer in answers) == ["Conflict"] * 5 + ["Told"]
            assert await site.count() == (number + 1, number + 1)


async def test_a_report_sent_while_the_consultation_is_finished_is_in_its_event_or_refused(site: Site) -> None:
    async with open_carehook(site.settings, clock=site.clock) as other:
        for number in range(5):
            await site.begin(id=f"c-{number}")
            report, finished = await asyncio.gather(
                site.care.send_report(site.organization, f"c-{number}", build_report("r")),
                other.care.finish_consultation(site.organization, f"c-{number}", Finish()),
                return_exceptions=True,
            )
            assert isinstance(finished, Told)
            reports = (await site.read_event(finished.event_id))["payload"]["reports"]
            assert len(reports) == (1 if isinstance(report, Told) else 0)
            assert isinstance(report, Told | Conflict)


# ------------------------------------------------------------------------------------ both or neither


async def break_after_each_step(site: Site, act: Callable[[CareRecords], Awaitable[object]]) -> int:
    """Let `act` fail after each of its steps in turn, then succeed; how many steps there are."""
    watched = WatchedLedger(site.carehook.ledger)
    care = CareRecords(watched.port, site.carehook.intake, site.clock)
    before = await site.count()
    for step in range(1, 100):
        watched.steps, watched.fail_after = 0, step
        try:
            await act(care)
        except PowerCut:
            assert await site.count() == before
            assert (await site.carehook.insights.backlog()).waiting == before[1]
        else:
            return step - 1
    raise AssertionError("It never succeeded.")


async def test_a_report_and_its_event_are_stored_both_or_neither(site: Site) -> None:
    await site.begin()
    steps = await break_after_each_step(
        site, lambda care: care.send_report(site.organization, "consultation", build_report("r"))
    )
    # At least: the consultation, the reports, the endpoints, the event, the delivery, the report, the commit.
    assert steps >= 7
    assert await site.count() == (1, 1)
    told = await site.care.finish_consultation(site.organization, "consultation", Finish())
    assert [each["id"] for each in (await site.read_event(told.event_id))["payload"]["reports"]] == ["r"]


async def test_the_end_of_a_consultation_and_its_event_are_stored_both_or_neither(site: Site) -> None:
    await site.begin()
    steps = await break_after_each_step(
        site, lambda care: care.finish_consultation(site.organization, "consultation", Finish())
    )
    assert steps >= 7
    assert await site.count() == (1, 1)
    with pytest.raises(Conflict, match="is finished"):
        await site.care.finish_consultation(site.organization, "consultation", Finish())


# ------------------------------------------------------------------------------------ who may see whom


@on_one_store
async def test_what_is_not_known_is_refused_by_its_field(site: Site) -> None:
    for field in ("patient_code", "professional_id"):
        with pytest.raises(Invalid) as raised:
            await site.begin(**{field: "nobody"})
        assert [error.field for error in raised.value.errors] == [field]
    for consultation in ("none", "", ".", "a/b", "\x00", "x" * 5000):
        with pytest.raises(NotFound, match="There is no consultation"):
            await site.care.finish_consultation(site.organization, consultation, Finish())
    for organization in (UNKNOWN, "\x00", ""):
        with pytest.raises(NotFound, match="There is no organization"):
            await site.care.put_patient(organization, "code", build_history())
        with pytest.raises(NotFound, match="There is no organization"):
            await site.care.put_professional("hash", ProfessionalProfile(name="n", avatar=""), scope=organization)
        with pytest.raises(NotFound, match="There is no organization"):
            await site.care.begin_consultation(organization, build_consultation())
        with pytest.raises(NotFound, match="There is no organization"):
            await site.care.send_report(organization, "consultation", build_report())


@on_one_store
async def test_an_organization_has_patients_and_consultations_of_its_own(site: Site) -> None:
    other = await create_organization(site.carehook, "Another")
    await site.begin()
    with pytest.raises(NotFound):
        await site.care.send_report(other, "consultation", build_report())
    with pytest.raises(NotFound):
        await site.care.finish_consultation(other, "consultation", Finish())
    with pytest.raises(Invalid, match="patient_code names no patient"):
        await site.care.begin_consultation(other, build_consultation())
    await site.care.put_patient(other, "code", build_history("theirs"))
    await site.care.begin_consultation(other, build_consultation(type="appointment"))
    told = await site.care.finish_consultation(site.organization, "consultation", Finish())
    payload = (await site.read_event(told.event_id))["payload"]
    assert (payload["consultation"]["type"], payload["patient"]["allergies"]) == ("chat", [])
    assert await list_events(site.carehook, other) == []


async def test_an_organizations_own_professional_goes_before_the_platforms_and_for_it_alone(site: Site) -> None:
    other = await create_organization(site.carehook, "Another")
    await site.care.put_patient(other, "code", build_history())
    await site.care.put_professional("hash", ProfessionalProfile(name="Dr. Own", avatar=""), scope=other)
    await site.care.put_professional("theirs", ProfessionalProfile(name="Dr. Theirs", avatar=""), scope=other)
    names = {}
    for organization in (site.organization, other):
        await site.care.begin_consultation(organization, build_consultation())
        told = await site.care.finish_consultation(organization, "consultation", Finish())
        names[organization] = (await site.read_event(told.event_id))["payload"]["professional"]["name"]
    assert names == {site.organization: "Dr. Example", other: "Dr. Own"}
    with pytest.raises(Invalid, match="professional_id names no professional"):
        await site.begin(id="second", professional_id="theirs")


# ------------------------------------------------------------------------------------ ids and types


async def test_ids_may_have_any_character_that_a_url_can_carry(site: Site) -> None:
    for good in ("a b", "ñ-☤", "a.b", "...", "%2F", "a?b#c", "\\", "x" * 200, "'; DROP TABLE"):
        await site.care.put_patient(site.organization, good, build_history())
        await site.care.put_professional(good, ProfessionalProfile(name="n", avatar=""))
        await site.begin(id=good, patient_code=good, professional_id=good)
        await site.care.send_report(site.organization, good, build_report(good))
        told = await site.care.finish_consultation(site.organization, good, Finish())
        payload = (await site.read_event(told.event_id))["payload"]
        assert {payload[name]["id"] for name in ("consultation", "professional")} == {good}
        assert (payload["patient"]["code"], payload["reports"][0]["id"]) == (good, good)


@on_one_store
@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "a\nb", "a\n", "\x00", "\x9b", "\u2028", "x" * 201])
async def test_ids_that_a_url_cannot_carry_are_refused_by_their_field(site: Site, bad: str) -> None:
    with pytest.raises(Invalid, match="code must have 1 to 200 characters"):
        await site.care.put_patient(site.organization, bad, build_history())
    with pytest.raises(Invalid, match="id must have 1 to 200 characters"):
        await site.care.put_professional(bad, ProfessionalProfile(name="n", avatar=""))
    for field in ("id", "patient_code", "professional_id"):
        with pytest.raises(ValidationError, match="must have 1 to 200 characters"):
            build_consultation(**{field: bad})


@pytest.mark.parametrize(
    ("model", "values", "field"),
    [
        (History, {"allergies": [], "diseases": []}, "medications"),
        (History, {"allergies": [{"id": 1, "name": "", "description": ""}], "diseases": [], "medications": []}, "id"),
        (History, {"allergies": [], "diseases": [], "medications": [], "notes": []}, "notes"),
        (ProfessionalProfile, {"name": 1, "avatar": ""}, "name"),
        (ProfessionalProfile, {"name": "n", "avatar": None}, "avatar"),
        (NewSoapReport, {"type": "pdf", "content": SOAP}, "type"),
        (NewSoapReport, {"type": "soap", "content": SOAP | {"note": ""}}, "note"),
        (NewSoapReport, {"type": "soap", "content": {"plan": "p"}}, "subjective"),
        (NewPrescription, {"active_substances": []}, "active_substances"),
        (NewPrescription, {"active_substances": [1]}, "active_substances"),
        (NewPrescription, {"active_substances": "ibuprofen"}, "active_substances"),
        (NewPrescription, {"id": 7, "active_substances": ["a"]}, "id"),
        (Finish, {"end_date": 1704063600}, "end_date"),
        (Finish, {"end_date": "2024-01-01"}, "end_date"),
        (Finish, {"end_date": "0001-01-01T00:00:00"}, "end_date"),
        (Finish, {"ended": "2024-01-01T00:00:00"}, "ended"),
    ],
)
def test_nothing_is_guessed_and_nothing_unknown_is_taken(model: type[BaseModel], values: object, field: str) -> None:
    with pytest.raises(ValidationError) as raised:
        model.model_validate_json(json.dumps(values))
    assert any(field in error["loc"] for error in raised.value.errors())


@pytest.mark.parametrize("speciality", [{"id": "1", "name": "n"}, {"id": 1.5, "name": "n"}, {"id": 1}, {"id": True}])
def test_a_speciality_is_a_number_and_a_name(speciality: object) -> None:
    with pytest.raises(ValidationError, match="speciality"):
        build_consultation(speciality=speciality)


@on_one_store
async def test_no_refusal_shows_what_a_patient_has(site: Site) -> None:
    await site.begin()
    await site.care.send_report(site.organization, "consultation", build_report("r", plan="hiv treatment"))
    with pytest.raises(Conflict) as raised:
        await site.care.send_report(site.organization, "consultation", build_report("r", plan="hiv treatment, again"))
    assert "hiv" not in str(raised.value)
    with pytest.raises(Invalid) as refused:
        await site.begin(id="c2", patient_code="hiv-patient-7")
    assert "hiv" not in str(refused.value)
