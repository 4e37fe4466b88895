"""The window of an endpoint: answers widen it, silence narrows it."""

from __future__ import annotations

import pytest

from carehook.dispatch.window import FAILURES_IN_A_ROW, START, Ending, Window


def fill(window: Window) -> None:
    """Have as many in flight as may be, all of them answered."""
    for in_flight in range(1, window.size + 1):
        window.note(in_flight)
    for _ in range(window.size):
        window.learn(Ending.SUCCEEDED, 1.0)


def test_it_starts_small_and_doubles_with_each_round_trip_up_to_its_limit() -> None:
    window = Window(64)
    sizes = [window.size]
    for _ in range(4):
        fill(window)
        sizes.append(window.size)
    assert sizes == [START, 16, 32, 64, 64]


def test_a_limit_below_the_start_is_kept_from_the_start() -> None:
    window = Window(3)
    fill(window)
    assert window.size == 3


def test_it_halves_for_each_request_without_an_answer_and_never_closes() -> None:
    window = Window(64)
    for _ in range(3):
        fill(window)
    sizes = []
    for _ in range(8):
        window.learn(Ending.UNANSWERED, 15.0)
        sizes.append(window.size)
    assert sizes == [32, 16, 8, 4, 2, 1, 1, 1]


def test_one_that_was_down_is_back_after_a_few_round_trips() -> None:
    window = Window(64)
    for _ in range(8):
        window.learn(Ending.UNANSWERED, 15.0)
    sizes = []
    for _ in range(7):
        fill(window)
        sizes.append(window.size)
    assert sizes == [2, 4, 8, 16, 32, 64, 64]


def test_answers_to_fewer_requests_than_it_allows_do_not_widen_it() -> None:
    window = Window(64)
    for _ in range(1000):
        window.note(1)
        window.learn(Ending.SUCCEEDED, 1.0)
        window.note(0)
    assert window.size == START
    assert window.is_proven


def test_what_was_filled_once_does_not_count_after_a_lull() -> None:
    window = Window(64)
    fill(window)
    window.note(0)
    window.note(1)
    window.learn(Ending.SUCCEEDED, 1.0)
    assert window.size == 2 * START


@pytest.mark.parametrize("proven_before", [False, True])
def test_proven_is_what_happened_last(*, proven_before: bool) -> None:
    window = Window(64)
    if proven_before:
        window.learn(Ending.SUCCEEDED, 1.0)
    window.learn(Ending.UNANSWERED, 15.0)
    assert not window.is_proven
    window.learn(Ending.SUCCEEDED, 1.0)
    assert window.is_proven


@pytest.mark.parametrize(
    ("seconds", "windows"), [(0.001, 4.0), (0.1, 4.0), (0.25, 2.0), (0.5, 1.0), (10.0, 1.0)], ids=str
)
def test_the_faster_it_answers_the_more_may_be_claimed_ahead(seconds: float, windows: float) -> None:
    window = Window(64)
    for _ in range(100):
        window.learn(Ending.SUCCEEDED, seconds)
    assert window.ahead == pytest.approx(windows, rel=0.01)


def test_nothing_may_be_claimed_ahead_of_one_that_has_not_answered_or_stopped_to() -> None:
    window = Window(64)
    assert window.ahead == 0
    window.learn(Ending.SUCCEEDED, 0.01)
    assert window.ahead >= 1
    window.learn(Ending.UNANSWERED, 15.0)
    assert window.ahead == 0


def test_an_error_is_an_answer_that_neither_widens_nor_narrows() -> None:
    window = Window(64)
    fill(window)
    for _ in range(100):
        window.note(window.size)
        window.learn(Ending.FAILED, 0.01)
    assert window.size == 2 * START
    assert window.is_proven


def test_after_some_failures_in_a_row_nothing_is_claimed_ahead_until_a_success() -> None:
    window = Window(64)
    window.learn(Ending.SUCCEEDED, 0.01)
    for _ in range(FAILURES_IN_A_ROW - 1):
        window.learn(Ending.FAILED, 0.01)
    assert window.ahead >= 1
    window.learn(Ending.FAILED, 0.01)
    assert window.ahead == 0
    window.learn(Ending.SUCCEEDED, 0.01)
    assert window.ahead >= 1


def test_what_was_our_doing_teaches_nothing() -> None:
    window = Window(64)
    window.note(START)
    window.learn(Ending.UNTOLD, 15.0)
    assert (window.size, window.is_proven) == (START, False)
    window.learn(Ending.SUCCEEDED, 0.01)
    window.learn(Ending.UNTOLD, 15.0)
    assert (window.size, window.is_proven) == (START + 1, True)
