"""The agenda: what is on it is looked at once, in turn, and what is not on it is not looked at."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from carehook.ledger.agenda import Agenda

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def offer(most: int = 10, *, but: tuple[str, ...] = ()) -> Callable[[str], int]:
    """Room for `most` of each endpoint, but for none of some."""
    return lambda endpoint_id: 0 if endpoint_id in but else most


def take(agenda: Agenda, limit: int = 100, now: datetime = NOW, *, but: tuple[str, ...] = ()) -> list[str]:
    return list(agenda.take(limit, offer(but=but), now))


def test_nothing_is_on_a_new_agenda() -> None:
    agenda = Agenda()
    assert take(agenda) == []
    assert not agenda.has_ready()
    assert agenda.next_at() is None


def test_what_is_taken_is_off_the_agenda() -> None:
    agenda = Agenda()
    agenda.add(["ep_1", "ep_2"])
    assert agenda.take(10, offer(7), NOW) == {"ep_1": 7, "ep_2": 7}
    assert take(agenda) == []


def test_what_is_added_again_keeps_its_place() -> None:
    agenda = Agenda()
    agenda.add(["ep_1", "ep_2"])
    agenda.add(["ep_2", "ep_1", "ep_3"])
    assert take(agenda) == ["ep_1", "ep_2", "ep_3"]


def test_no_more_than_the_limit_are_taken_and_the_rest_come_next() -> None:
    agenda = Agenda()
    agenda.add(["ep_1", "ep_2", "ep_3"])
    assert take(agenda, 2) == ["ep_1", "ep_2"]
    assert agenda.has_ready()
    agenda.add(["ep_1"])
    assert take(agenda, 2) == ["ep_3", "ep_1"]


def test_those_without_room_are_off_until_there_is_news_of_them() -> None:
    agenda = Agenda()
    agenda.add(["ep_1", "ep_2"])
    assert take(agenda, 1, but=("ep_1",)) == ["ep_2"]
    assert take(agenda) == []
    agenda.add(["ep_1"])
    assert take(agenda) == ["ep_1"]


def test_nobody_is_asked_about_what_is_not_looked_at() -> None:
    agenda, asked = Agenda(), list[str]()
    agenda.add([f"ep_{number}" for number in range(5)])
    agenda.add_later("ep_later", NOW + SECOND)

    def note(endpoint_id: str) -> int:
        asked.append(endpoint_id)
        return 1

    agenda.take(2, note, NOW)
    assert asked == ["ep_0", "ep_1"]


def test_what_is_due_later_comes_in_time() -> None:
    agenda = Agenda()
    agenda.add_later("ep_2", NOW + 2 * SECOND)
    agenda.add_later("ep_1", NOW + SECOND)
    assert agenda.next_at() == NOW + SECOND
    assert take(agenda) == []
    assert take(agenda, now=NOW + SECOND) == ["ep_1"]
    assert agenda.next_at() == NOW + 2 * SECOND
    assert take(agenda, now=NOW + 9 * SECOND) == ["ep_2"]


def test_what_falls_due_does_not_come_before_what_waits() -> None:
    agenda = Agenda()
    agenda.add_later("ep_1", NOW)
    agenda.add(["ep_2", "ep_1"])
    assert take(agenda) == ["ep_2", "ep_1"]


def test_a_survey_brings_what_is_due_the_longest_first_and_what_will_be() -> None:
    agenda = Agenda()
    agenda.add(["ep_new", "ep_1"])
    agenda.add_surveyed([("ep_2", NOW - SECOND), ("ep_1", NOW), ("ep_3", NOW + SECOND)], NOW)
    assert agenda.next_at() == NOW + SECOND
    assert take(agenda) == ["ep_2", "ep_1", "ep_new"]
    assert take(agenda, now=NOW + SECOND) == ["ep_3"]


def test_a_survey_does_not_forget_what_came_while_it_was_made() -> None:
    agenda = Agenda()
    agenda.add_later("ep_1", NOW + SECOND)
    agenda.add_later("ep_2", NOW + SECOND)
    agenda.add_surveyed([("ep_1", NOW + 9 * SECOND), ("ep_3", NOW + 2 * SECOND)], NOW)
    assert take(agenda, now=NOW + SECOND) == ["ep_1", "ep_2"]
    assert take(agenda, now=NOW + 2 * SECOND) == ["ep_3"]


def test_many_surveys_do_not_make_it_grow() -> None:
    agenda = Agenda()
    for _ in range(100):
        agenda.add_surveyed([("ep_1", NOW + SECOND), ("ep_2", NOW + SECOND)], NOW)
    assert agenda.next_at() == NOW + SECOND
    assert agenda.take(1, offer(), NOW + SECOND) == {"ep_1": 10}
    assert agenda.next_at() is None
