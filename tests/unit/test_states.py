"""The life of a delivery: every state with everything that can happen in it, written out."""

from itertools import product

import pytest

from carehook.ledger.states import TRANSITIONS, DeliveryState, Transition, is_final, states_before

# One line a state, one column a transition; `.` where it cannot happen.
TABLE = """
            succeed   reschedule exhaust   hold release cancel    retry   resend
pending     succeeded pending    exhausted held .       cancelled pending pending
held        succeeded held       exhausted .    pending cancelled .       held
succeeded   .         .          .         .    .       .         .       pending
exhausted   .         .          .         .    .       .         pending pending
cancelled   succeeded cancelled  cancelled .    .       .         pending pending
"""


def read_table() -> dict[tuple[DeliveryState, Transition], DeliveryState | None]:
    header, *lines = TABLE.strip().splitlines()
    return {
        (DeliveryState(state), Transition(transition)): None if after == "." else DeliveryState(after)
        for state, *cells in map(str.split, lines)
        for transition, after in zip(header.split(), cells, strict=True)
    }


@pytest.mark.parametrize(("state", "transition"), list(product(DeliveryState, Transition)))
def test_every_transition_of_every_state(state: DeliveryState, transition: Transition) -> None:
    assert TRANSITIONS[state].get(transition) == read_table()[state, transition]


def test_every_state_is_reached() -> None:
    reached = {DeliveryState.PENDING, DeliveryState.HELD}
    while found := {after for state in reached for after in TRANSITIONS[state].values()} - reached:
        reached |= found
    assert reached == set(DeliveryState)


def test_a_final_state_is_left_only_when_somebody_asks_or_a_request_was_in_flight() -> None:
    asked = {Transition.RETRY, Transition.RESEND}
    for state in filter(is_final, DeliveryState):
        leaving = {transition for transition, after in TRANSITIONS[state].items() if not is_final(after)}
        assert leaving
        assert leaving <= asked


def test_what_is_not_final_can_end_every_way() -> None:
    for state in DeliveryState:
        if not is_final(state):
            assert {after for after in TRANSITIONS[state].values() if is_final(after)} == set(
                filter(is_final, DeliveryState)
            )


def test_a_result_can_be_applied_to_every_state_that_a_request_in_flight_can_find() -> None:
    # A lease begins in `pending`; meanwhile anything may happen that nobody refuses for a delivery in flight.
    meanwhile = set(Transition) - {
        Transition.SUCCEED,
        Transition.RESCHEDULE,
        Transition.EXHAUST,
        Transition.RETRY,
        Transition.RESEND,
    }
    found = {DeliveryState.PENDING}
    while more := {TRANSITIONS[state][each] for state in found for each in meanwhile & set(TRANSITIONS[state])} - found:
        found |= more
    for result in (Transition.SUCCEED, Transition.RESCHEDULE, Transition.EXHAUST):
        assert found <= states_before(result)


@pytest.mark.parametrize("transition", list(Transition))
def test_states_before_agrees_with_the_table(transition: Transition) -> None:
    assert states_before(transition) == {
        state for (state, each), after in read_table().items() if each == transition and after is not None
    }
