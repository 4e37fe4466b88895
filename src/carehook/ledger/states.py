"""The life of a delivery, as a table: `TRANSITIONS[state][transition]` is the next state.

What is not in the table cannot happen. A lease is independent of the state: a delivery that is held or cancelled while
its request is in flight keeps its lease, and the result of that request is applied to the state it finds.
"""

from collections.abc import Mapping
from enum import StrEnum


class DeliveryState(StrEnum):
    """Where a delivery stands. `pending` and `held` go on; the others are final unless somebody asks again."""

    PENDING = "pending"
    HELD = "held"
    SUCCEEDED = "succeeded"
    EXHAUSTED = "exhausted"
    CANCELLED = "cancelled"


class Transition(StrEnum):
    """What can happen to a delivery."""

    SUCCEED = "succeed"
    """An attempt was answered with 2xx."""
    RESCHEDULE = "reschedule"
    """An attempt failed and another is due later."""
    EXHAUST = "exhaust"
    """An attempt failed and it was the last of the schedule."""
    HOLD = "hold"
    """Its endpoint was paused or disabled."""
    RELEASE = "release"
    """Its endpoint was resumed."""
    CANCEL = "cancel"
    """Somebody cancelled it, or its endpoint was deleted."""
    RETRY = "retry"
    """Somebody asked for another attempt now."""
    RESEND = "resend"
    """Somebody asked that the event be sent again, whether it had arrived or not."""


TRANSITIONS: Mapping[DeliveryState, Mapping[Transition, DeliveryState]] = {
    DeliveryState.PENDING: {
        Transition.SUCCEED: DeliveryState.SUCCEEDED,
        Transition.RESCHEDULE: DeliveryState.PENDING,
        Transition.EXHAUST: DeliveryState.EXHAUSTED,
        Transition.HOLD: DeliveryState.HELD,
        Transition.CANCEL: DeliveryState.CANCELLED,
        Transition.RETRY: DeliveryState.PENDING,
        Transition.RESEND: DeliveryState.PENDING,
    },
    DeliveryState.HELD: {
        # Held while its request was in flight: the result counts.
        Transition.SUCCEED: DeliveryState.SUCCEEDED,
        Transition.RESCHEDULE: DeliveryState.HELD,
        Transition.EXHAUST: DeliveryState.EXHAUSTED,
        Transition.RELEASE: DeliveryState.PENDING,
        Transition.CANCEL: DeliveryState.CANCELLED,
        Transition.RESEND: DeliveryState.HELD,
    },
    DeliveryState.SUCCEEDED: {
        Transition.RESEND: DeliveryState.PENDING,
    },
    DeliveryState.EXHAUSTED: {
        Transition.RETRY: DeliveryState.PENDING,
        Transition.RESEND: DeliveryState.PENDING,
    },
    DeliveryState.CANCELLED: {
        # Cancelled while its request was in flight: a receiver that has it has it, but nothing is sent again.
        Transition.SUCCEED: DeliveryState.SUCCEEDED,
        Transition.RESCHEDULE: DeliveryState.CANCELLED,
        Transition.EXHAUST: DeliveryState.CANCELLED,
        Transition.RETRY: DeliveryState.PENDING,
        Transition.RESEND: DeliveryState.PENDING,
    },
}


def states_before(transition: Transition) -> frozenset[DeliveryState]:
    """The states in which `transition` can happen."""
    return frozenset(state for state, leaving in TRANSITIONS.items() if transition in leaving)


def is_final(state: DeliveryState) -> bool:
    """Whether nothing more happens to a delivery in `state` by itself."""
    return state not in (DeliveryState.PENDING, DeliveryState.HELD)


class EndpointStatus(StrEnum):
    """Whether an endpoint receives. Deliveries for one that is not active are held."""

    ACTIVE = "active"
    PAUSED = "paused"
    """Somebody paused it."""
    DISABLED = "disabled"
    """Carehook stopped it, for the reason kept with it."""
    DELETED = "deleted"
    """Kept for the history of its deliveries alone."""


class Ordering(StrEnum):
    """Which of an endpoint's deliveries go one after another, in the order in which their events were accepted."""

    NONE = "none"
    PATIENT = "patient"
    """Those of one patient: one that fails holds back that patient's alone, until it is finished."""
