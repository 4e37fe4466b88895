"""The contract in types: its examples go in and come out equal, and what breaks it is named without being shown."""

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from carehook.events import (
    CATALOGUE,
    AnyEvent,
    Consultation,
    InvalidEvent,
    PatientConsultationFinished,
    PatientReference,
    PatientReportSent,
    SoapContent,
    SoapReportSent,
    Speciality,
    UnknownEventType,
    build_body,
    parse_event,
    parse_events,
)

CONTRACT = sorted((Path(__file__).parents[1] / "vectors" / "contract").glob("*.json"))
SECRET = "do not repeat me"


def build_example(name: str = "patient_consultation_finished") -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(CATALOGUE[name].example))
    return copy


def refuse(document: object) -> InvalidEvent:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(InvalidEvent) as refusal:
        parse_event(data)
    return refusal.value


def refuse_fields(document: object) -> list[str]:
    return [error.field for error in refuse(document).errors]


# -- the contract's own examples


@pytest.mark.parametrize("path", CONTRACT, ids=lambda path: path.stem)
def test_a_contract_example_comes_out_equal_and_in_the_same_order(path: Path) -> None:
    body = build_body(parse_event(path.read_bytes()))
    assert body == json.dumps(json.loads(path.read_bytes()), separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize("path", CONTRACT, ids=lambda path: path.stem)
def test_a_body_is_the_same_bytes_each_time(path: Path) -> None:
    body = build_body(parse_event(path.read_bytes()))
    assert build_body(parse_event(body)) == body


def test_every_contract_example_is_here() -> None:
    assert [path.stem for path in CONTRACT] == ["patient_consultation_finished", "patient_report_sent"]


def test_text_that_is_not_ascii_is_kept_as_it_is() -> None:
    example = build_example("patient_report_sent")
    example["payload"]["content"]["plan"] = "Reposo 3 días \N{DNA DOUBLE HELIX}"
    assert "Reposo 3 días \N{DNA DOUBLE HELIX}".encode() in build_body(parse_event(json.dumps(example).encode()))


def test_an_event_is_built_in_python_with_few_words() -> None:
    event = PatientReportSent(
        occurred_on=1704063600,
        payload=SoapReportSent(
            type="soap",
            content=SoapContent(subjective="s", objective="o", assessment="a", plan="p"),
            patient=PatientReference(code="c"),
        ),
    )
    assert parse_event(build_body(event)) == event


# -- time


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("2024-01-01T00:00:00", "2024-01-01T00:00:00"),
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00"),
        ("2024-01-01t00:00:00z", "2024-01-01T00:00:00"),
        ("2024-01-01T00:00:00+02:00", "2023-12-31T22:00:00"),
        ("2024-01-01T00:00:00-0230", "2024-01-01T02:30:00"),
        ("2024-01-01T00:00:59.999999", "2024-01-01T00:00:59"),
        ("2024-01-01T00:00", "2024-01-01T00:00:00"),
        ("0001-01-01T00:00:00", "0001-01-01T00:00:00"),
        ("2024-02-29T23:59:59", "2024-02-29T23:59:59"),
    ],
)
def test_a_date_time_is_sent_in_utc_and_in_the_contracts_form(written: str, sent: str) -> None:
    example = build_example()
    example["payload"]["consultation"]["start_date"] = written
    body = json.loads(build_body(parse_event(json.dumps(example).encode())))
    assert body["payload"]["consultation"]["start_date"] == sent


@pytest.mark.parametrize(
    "written",
    [
        "",
        "2024-01-01",
        "yesterday",
        "2024-02-30T00:00:00",
        "2023-02-29T00:00:00",
        "2024-01-01T24:00:00",
        "2024-01-01T00:00:60",
        "2024-01-01 00:00:00",
        "20240101T000000",
        "2024-01-01T00:00:00 ",
        "2024-01-01T00:00:00\n",
        "٢٠٢٤-01-01T00:00:00",
        "0000-01-01T00:00:00",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-01:00",
        1704063600,
        1704063600.5,
        True,
        None,
        ["2024-01-01T00:00:00"],
    ],
)
def test_what_is_no_date_time_is_refused_with_a_plain_message(written: object) -> None:
    example = build_example()
    example["payload"]["consultation"]["end_date"] = written
    (error,) = refuse(example).errors
    assert str(error) == ("payload.consultation.end_date must be an ISO 8601 date and time such as 2024-01-01T00:00:00")


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2024, 1, 1, 10, 0, 0, 999_999),  # noqa: DTZ001 - naive is the point: it is UTC
        datetime(2024, 1, 1, 10, tzinfo=UTC),
        datetime(2024, 1, 1, 12, tzinfo=timezone(timedelta(hours=2))),
    ],
)
def test_python_gives_date_times_and_gets_them_aware_and_in_utc(moment: datetime) -> None:
    consultation = Consultation(
        id="c", type="chat", start_date=moment, end_date=moment, speciality=Speciality(id=1, name="n")
    )
    assert consultation.start_date == datetime(2024, 1, 1, 10, tzinfo=UTC)
    assert consultation.start_date.tzinfo is UTC
    assert json.loads(consultation.model_dump_json())["start_date"] == "2024-01-01T10:00:00"


@pytest.mark.parametrize("written", ["0", "1704063600", "1704063600.25", "253402300799", "1704063600.0"])
def test_occurred_on_stays_the_number_it_was(written: str) -> None:
    example = json.dumps(build_example("patient_report_sent")).replace("1704063600", written)
    assert f'"occurred_on":{written},'.encode() in build_body(parse_event(example.encode()))


@pytest.mark.parametrize(
    "written", ["-1", "253402300800", "1e300", "1e999", "NaN", "Infinity", '"1704063600"', "true", "null", "9" * 4000]
)
def test_occurred_on_is_a_unix_time_and_nothing_else(written: str) -> None:
    example = json.dumps(build_example("patient_report_sent")).replace("1704063600", written)
    assert refuse_fields(example.encode()) == ["occurred_on"]


# -- what is refused, and how it is told


def set_at(document: dict[str, Any], path: str, value: object) -> None:
    *parents, last = path.split(".")
    target: Any = document
    for name in parents:
        target = target[int(name)] if name.isdigit() else target[name]
    target[int(last) if last.isdigit() else last] = value


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        ("payload.consultation.type", SECRET, "must be 'appointment' or 'chat'"),
        ("payload.consultation.id", "", "must not be empty"),
        ("payload.consultation.id", 7, "must be a string"),
        ("payload.consultation.speciality.id", "1", "must be an integer"),
        ("payload.consultation.speciality.id", True, "must be an integer"),
        ("payload.consultation.speciality.id", 1.0, "must be an integer"),
        ("payload.consultation.speciality.id", 2**53, "must be at most 9007199254740991"),
        ("payload.consultation.speciality.id", 10**30, "must be at most 9007199254740991"),
        ("payload.consultation.speciality.id", -(2**53), "must be at least -9007199254740991"),
        ("payload.reports.1.type", SECRET, "must be one of 'soap'"),
        ("payload.reports.0.content.plan", None, "must be a string"),
        ("payload.reports.0.content", SECRET, "must be an object"),
        ("payload.reports.0", SECRET, "must be an object"),
        ("payload.reports", {}, "must be a list"),
        ("payload.patient.code", "", "must not be empty"),
        ("payload.patient.medications.1.posology", 1, "must be a string"),
        ("payload.patient.nickname", SECRET, "is not a field of the contract"),
        ("payload.reports.0.soap", SECRET, "is not a field of the contract"),
        ("payload.prescriptions.0.active_substances", SECRET, "must be a list"),
        ("payload.prescriptions.0.active_substances.2", 3, "must be a string"),
        ("payload", [], "must be an object"),
        ("event_id", SECRET, "is not a field of the contract"),
    ],
)
def test_an_error_names_the_field_and_the_rule_and_not_the_value(path: str, value: object, rule: str) -> None:
    example = build_example()
    set_at(example, path, value)
    refusal = refuse(example)
    assert [str(error) for error in refusal.errors] == [f"{path} {rule}"]
    assert SECRET not in str(refusal)
    assert refusal.__context__ is None, "the validator's error, which holds the input, must not come along"


@pytest.mark.parametrize(
    "path", ["type", "payload", "occurred_on", "payload.patient.diseases", "payload.reports.0.type"]
)
def test_a_missing_field_is_named(path: str) -> None:
    example = build_example()
    *parents, last = path.split(".")
    target: Any = example
    for name in parents:
        target = target[int(name)] if name.isdigit() else target[name]
    del target[last]
    assert [str(error) for error in refuse(example).errors] == [f"{path} is required"]


@pytest.mark.parametrize("name", [SECRET, "", 7, None, ["patient_report_sent"]])
def test_an_unknown_type_is_an_error_of_its_own_that_lists_the_known_ones(name: object) -> None:
    refusal = refuse({**build_example(), "type": name})
    assert isinstance(refusal, UnknownEventType)
    assert str(refusal) == "type must be one of 'patient_consultation_finished', 'patient_report_sent'"


def test_an_unknown_report_type_is_not_an_unknown_event_type() -> None:
    example = build_example("patient_report_sent")
    example["payload"]["type"] = "x"
    refusal = refuse(example)
    assert not isinstance(refusal, UnknownEventType)
    assert [error.field for error in refusal.errors] == ["payload.type"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'"\xed\xa0\x80"',
        b'{"type": "\\ud800"}',
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"type":' * 10_000,
        b'{"occurred_on": ' + b"9" * 5000 + b"}",
        b"{} {}",
        b"[]",
        b"null",
        b"3",
        b'"patient_report_sent"',
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_json_object_is_an_error_of_the_body(data: bytes) -> None:
    assert refuse_fields(data) == ["body"]


def test_a_thousand_errors_are_told_as_fifty() -> None:
    example = build_example()
    example["payload"]["reports"] = [{}] * 1000
    refusal = refuse(example)
    assert len(refusal.errors) == 50
    assert str(refusal).endswith("; and 47 more")


def test_the_name_of_an_unknown_field_is_shown_short_and_on_one_line() -> None:
    (field,) = refuse_fields({**build_example(), "a\r\nb" + "c" * 1000: 1})
    assert field == "a??b" + "c" * 60


# -- tolerance for receivers


def add_everywhere(document: Any) -> Any:
    if isinstance(document, dict):
        return {**{name: add_everywhere(value) for name, value in document.items()}, "news": [{"more": 1}]}
    return [add_everywhere(value) for value in document] if isinstance(document, list) else document


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_receiver_passes_over_unknown_fields_at_every_depth(name: str) -> None:
    newer = json.dumps(add_everywhere(build_example(name))).encode()
    assert json.loads(build_body(parse_event(newer, ignore_unknown_fields=True))) == CATALOGUE[name].example
    assert len(refuse(newer).errors) > 3


# -- batches


def test_a_batch_is_read_in_order() -> None:
    examples = [build_example("patient_report_sent"), build_example()]
    events = parse_events(json.dumps({"events": examples}).encode())
    assert [type(event) for event in events] == [PatientReportSent, PatientConsultationFinished]


def test_one_bad_event_refuses_the_batch_and_is_named_by_its_place() -> None:
    examples = [build_example() for _ in range(4)]
    examples[3]["payload"]["reports"][1]["content"]["plan"] = 3
    examples[1]["type"] = "x"
    with pytest.raises(InvalidEvent) as refusal:
        parse_events(json.dumps({"events": examples}).encode())
    assert [error.field for error in refusal.value.errors] == [
        "events.1.type",
        "events.3.payload.reports.1.content.plan",
    ]
    assert not isinstance(refusal.value, UnknownEventType)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"events": []}, "events"),
        ({"events": [build_example()] * 4}, "events"),
        ({"events": {}}, "events"),
        ({"events": [3]}, "events.0"),
        ({}, "events"),
        ([], "body"),
        ({"events": [build_example()], "more": 1}, "more"),
    ],
)
def test_a_batch_has_one_event_to_its_limit(document: object, field: str) -> None:
    with pytest.raises(InvalidEvent) as refusal:
        parse_events(json.dumps(document).encode(), limit=3)
    assert [error.field for error in refusal.value.errors] == [field]


def test_a_batch_at_its_limit_is_read() -> None:
    assert len(parse_events(json.dumps({"events": [build_example()] * 3}).encode(), limit=3)) == 3


# -- nothing leaks, nothing changes


def build_secret_event() -> AnyEvent:
    return parse_event(json.dumps(build_example("patient_report_sent")).replace("patient_code", SECRET).encode())


@pytest.mark.parametrize("form", ["{0!r}", "{0}", "{0.payload!r}", "{0.payload}", "{0.payload.patient}"])
def test_a_payload_is_masked_when_it_is_shown(form: str) -> None:
    shown = form.format(build_secret_event())
    assert SECRET not in shown
    assert "**********" in shown


def test_an_event_cannot_be_changed() -> None:
    event = build_secret_event()
    with pytest.raises(ValidationError, match="frozen"):
        event.occurred_on = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        event.payload.patient.code = "x"  # type: ignore[misc]


def test_python_values_that_no_body_could_hold_are_refused_without_being_shown() -> None:
    with pytest.raises(ValidationError) as refusal:
        PatientReference(code=f"{SECRET}\ud800")
    assert SECRET not in str(refusal.value)
