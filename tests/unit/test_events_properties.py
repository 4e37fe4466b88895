"""What holds of any event and of any bytes."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from carehook.events import (
    CATALOGUE,
    FieldError,
    InvalidEvent,
    build_body,
    parse_event,
    parse_events,
)

text = st.text(max_size=8)
identifier = st.text(min_size=1, max_size=8)
moment = st.datetimes().map(lambda moment: moment.isoformat())
history_entry = st.fixed_dictionaries({"id": identifier, "name": text, "description": text})
soap = st.fixed_dictionaries({"subjective": text, "objective": text, "assessment": text, "plan": text})

consultation_finished = st.fixed_dictionaries(
    {
        "consultation": st.fixed_dictionaries(
            {
                "id": identifier,
                "type": st.sampled_from(["appointment", "chat"]),
                "start_date": moment,
                "end_date": moment,
                "speciality": st.fixed_dictionaries({"id": st.integers(-(2**53) + 1, 2**53 - 1), "name": text}),
            }
        ),
        "reports": st.lists(
            st.fixed_dictionaries({"id": identifier, "type": st.just("soap"), "content": soap}), max_size=3
        ),
        "patient": st.fixed_dictionaries(
            {
                "code": identifier,
                "allergies": st.lists(history_entry, max_size=3),
                "diseases": st.lists(history_entry, max_size=3),
                "medications": st.lists(
                    st.builds(lambda entry, posology: {**entry, "posology": posology}, history_entry, text), max_size=3
                ),
            }
        ),
        "professional": st.fixed_dictionaries({"id": identifier, "name": text, "avatar": text}),
        "prescriptions": st.lists(
            st.fixed_dictionaries({"id": identifier, "active_substances": st.lists(text, max_size=3)}), max_size=3
        ),
    }
)
report_sent = st.fixed_dictionaries(
    {"type": st.just("soap"), "content": soap, "patient": st.fixed_dictionaries({"code": identifier})}
)
unix_time = st.integers(0, 253402300799) | st.floats(0, 253402300799)
any_document = st.fixed_dictionaries(
    {"type": st.just("patient_consultation_finished"), "occurred_on": unix_time, "payload": consultation_finished}
) | st.fixed_dictionaries({"type": st.just("patient_report_sent"), "occurred_on": unix_time, "payload": report_sent})

parse_tolerantly = partial(parse_event, ignore_unknown_fields=True)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
any_json = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner))


def without_fractions(document: Any) -> Any:
    if "consultation" in document["payload"]:
        for name in ("start_date", "end_date"):
            document["payload"]["consultation"][name] = document["payload"]["consultation"][name][:19]
    return document


@given(any_document)
def test_whatever_the_contract_allows_goes_in_and_comes_out_equal(document: Any) -> None:
    body = build_body(parse_event(json.dumps(document).encode()))
    assert json.loads(body) == without_fractions(document)
    assert list(json.loads(body)) == ["type", "occurred_on", "payload"]
    assert parse_event(body) == parse_event(json.dumps(document).encode())
    assert build_body(parse_event(body)) == body


def find_errors(read: Callable[[bytes], object], data: bytes) -> list[FieldError] | None:
    try:
        read(data)
    except InvalidEvent as refusal:
        return refusal.errors
    return None


def is_read_or_explained(data: bytes) -> bool:
    outcomes = [find_errors(read, data) for read in (parse_event, parse_tolerantly, parse_events)]
    return all(errors is None or (errors and all(e.field and e.rule for e in errors)) for errors in outcomes)


@given(st.binary())
def test_any_bytes_are_an_event_or_an_invalid_one(data: bytes) -> None:
    assert is_read_or_explained(data)


@given(st.sampled_from(sorted(CATALOGUE)), any_json, st.data())
def test_an_example_with_anything_in_any_place_is_an_event_or_an_invalid_one(
    name: str, anything: Any, data: st.DataObject
) -> None:
    example: Any = json.loads(json.dumps(CATALOGUE[name].example))
    place, key = example, "payload"
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = anything
    assert is_read_or_explained(json.dumps(example).encode())
