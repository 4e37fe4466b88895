"""The laws that the books are held to: each tells a breach of it, and nothing where it is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest

from tests.faults.accounts import explain
from tests.faults.books import Delivery
from tests.faults.interventions import Silence
from tests.faults.laws import find_crowds, find_disorder, find_haste, find_noise
from tests.faults.recipients import Arrival, Habits


def arrive(event_id: str, began: float, ended: float, status: int = 200, path: str = "/e/0") -> Arrival:
    return Arrival("e", path, event_id, b"", status, began, ended)


@pytest.mark.parametrize(
    ("arrivals", "breaches"),
    [
        ([arrive("a", 1, 2), arrive("b", 3, 4)], 0),
        ([arrive("a", 1, 3), arrive("b", 2, 4)], 1),
        ([arrive("a", 1, 2, 503), arrive("b", 3, 4), arrive("a", 5, 6)], 1),
        ([arrive("a", 1, 2, 503), arrive("a", 3, 4), arrive("b", 5, 6)], 0),
        ([arrive("b", 1, 2), arrive("a", 3, 4)], 1),
        ([arrive("b", 1, 2)], 1),
        # Sent again, as after an interrupted attempt.
        ([arrive("a", 1, 2), arrive("b", 3, 4), arrive("a", 5, 6)], 0),
        # One of another patient.
        ([arrive("z", 0, 9), arrive("a", 1, 2)], 0),
    ],
)
def test_a_patient_s_event_waits_for_those_before_it(arrivals: list[Arrival], breaches: int) -> None:
    assert len(list(find_disorder(["a", "b"], arrivals, {}, set()))) == breaches


@pytest.mark.parametrize(
    ("given_up", "cut_off", "breaches"),
    [({}, set(), 1), ({"a": 2}, set(), 0), ({"a": 3}, set(), 1), ({"a": 3}, {"a"}, 0), ({"a": 0}, set(), 0)],
)
def test_what_is_given_up_holds_back_those_behind_it_until_then(
    given_up: Mapping[str, int], cut_off: set[str], breaches: int
) -> None:
    arrivals = [arrive("a", 1, 2, 422), arrive("a", 3, 4, 422), arrive("b", 5, 6), arrive("a", 5, 7, 422)]
    assert len(list(find_disorder(["a", "b"], arrivals, given_up, cut_off))) == breaches


@pytest.mark.parametrize(("cut_off", "breaches"), [(set(), 1), ({"a"}, 0)])
def test_more_in_flight_than_may_be_are_told_but_not_those_that_were_cut_off(cut_off: set[str], breaches: int) -> None:
    arrivals = [arrive("a", 1, 9), arrive("b", 2, 4), arrive("c", 3, 5), arrive("d", 5, 6)]
    assert len(list(find_crowds(arrivals, 2, cut_off))) == breaches


@pytest.mark.parametrize(("allowed", "breaches"), [(1, 1), (2, 0)])
def test_more_requests_than_the_rate_allows_are_told(allowed: float, breaches: int) -> None:
    arrivals = [arrive("a", 10.0, 11), arrive("b", 10.5, 11), arrive("c", 10.6, 11)]
    assert len(list(find_haste(arrivals, 10.0, 2.0, allowed))) == breaches


SILENCE = Silence("it was paused", "ep", answered=9, since=10, until=20, in_flight=frozenset("a"))


@pytest.mark.parametrize(
    ("arrivals", "breaches"),
    [
        ([arrive("b", 9.5, 11)], 0),
        ([arrive("b", 11, 12)], 1),
        ([arrive("b", 21, 22)], 0),
        ([arrive("a", 11, 12, 503)], 0),
        ([arrive("a", 11, 12, 503), arrive("a", 13, 14)], 1),
    ],
)
def test_in_a_silence_only_what_was_in_flight_may_begin_and_only_once(arrivals: list[Arrival], breaches: int) -> None:
    assert len(list(find_noise(SILENCE, arrivals, {"a": 1.0, "b": 1.0}, set()))) == breaches


def test_what_was_published_after_the_silence_was_promised_may_not_be_in_flight() -> None:
    assert list(find_noise(SILENCE, [arrive("a", 11, 12)], {"a": 9.5}, set())) == [
        "a was sent 2.000 s after it was paused"
    ]


def test_a_silence_may_be_that_of_a_url_or_of_a_delivery() -> None:
    arrivals = [arrive("b", 11, 12), arrive("c", 12, 13, path="/e/1")]
    of_url = Silence("", "ep", 9, 10, 20, frozenset(), path="/e/1")
    of_delivery = Silence("", "ep", 9, 10, 20, frozenset(), event_id="b")
    found = [list(find_noise(each, arrivals, {}, set())) for each in (of_url, of_delivery)]
    assert [[each[0] for each in told] for told in found] == [["c"], ["b"]]


def test_what_was_cut_off_may_be_heard_late() -> None:
    assert list(find_noise(SILENCE, [arrive("b", 11, 12)], {}, {"b"})) == []


@pytest.mark.parametrize(
    ("again", "resent", "unexplained"), [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 1), (3, 1, 0), (1, 1, 0)]
)
def test_what_was_taken_again_is_explained_by_attempts_or_by_who_wanted_it(
    again: int, resent: int, unexplained: int
) -> None:
    outcomes = ["interrupted", "unreachable", "responded"]
    delivery = Delivery("a", "ep", "succeeded", 3, None, outcomes, [1, 2, 3], [None, None, 200])
    explained = explain(delivery, again, resent)
    assert explained["unexplained"] == unexplained
    assert explained["resent"] + explained["repeated"] == again


def test_receivers_fail_by_their_habits() -> None:
    habits = Habits(fails_every=4, gone_every=6, outage=range(1, 3))
    assert [habits.choose_status(number, "a") for number in range(1, 9)] == [503, 503, 200, 503, 200, 410, 200, 503]
    refused = Counter(Habits(refused_share=0.25).choose_status(1, f"event-{number}") for number in range(1000))
    assert refused.keys() == {200, 422}
    assert 150 < refused[422] < 350
