"""Recording attempts within a session: what became of each delivery, and how it goes at its endpoint since."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any

from carehook.ids import ATTEMPT, new_id
from carehook.ledger.circuit import Failure, Tally, decide_disabling, record
from carehook.ledger.connections.sessions import Session
from carehook.ledger.records import Attempt, AttemptOutcome, FinishedAttempt, Lane
from carehook.ledger.sql.queue_statements import (
    ADD_ATTEMPTS,
    ATTEMPT_NAMES,
    BRING_FORWARD_THE_NEXT,
    DISABLE,
    FAILING,
    FINISH,
    HOLD,
    LANE_NAMES,
    LOCK_ENDPOINTS,
    LOCK_LANES,
    LOCK_LEASED,
    LOCK_LEASED_AND_HELD,
    LOST,
    PUT_OFF_THOSE_BEHIND,
    RECOVER_LOST,
    REVISE_ORGANIZATIONS,
    SET_LANE,
)
from carehook.ledger.states import TRANSITIONS, DeliveryState, is_final

LOST_LEASE = "the worker stopped before the outcome was known; the receiver may have got it"

RECOVERED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Recorded:
    """Whether each result counted, and the endpoints that have failed for too long, each with the reason."""

    counted: Sequence[bool]
    to_disable: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Leased:
    state: DeliveryState
    is_ordered: bool


def finish(session: Session, finished: Sequence[FinishedAttempt], now: datetime) -> Recorded:
    """Record attempts whose lease still holds, and move their deliveries."""
    gone = {each.endpoint_id: each.disable_reason for each in finished if each.disable_reason}
    leased = _lock_leased(session, finished, gone)
    # Taken out when it is counted, so that a result given twice counts once.
    found = [leased.pop((each.delivery_id, each.lease_token), None) for each in finished]
    counted = [(each, lease) for each, lease in zip(finished, found, strict=True) if lease is not None]
    FINISH.run(session, [_take_result(each, lease.state, now) for each, lease in counted])
    ADD_ATTEMPTS.run(session, [take_attempt(each.attempt) for each, _ in counted])
    move_those_behind(
        session,
        [(each.delivery_id, _decide_due(each, lease.state)) for each, lease in counted if lease.is_ordered],
    )
    for endpoint_id in {each.endpoint_id for each, _ in counted if each.disable_reason}:
        _disable(session, endpoint_id, gone[endpoint_id] or "", now)
    to_disable = record_outcomes(session, [each for each, _ in counted], now)
    return Recorded([lease is not None for lease in found], to_disable)


def move_those_behind(session: Session, ordered: Sequence[tuple[str, datetime | None]]) -> None:
    """What results mean for those behind in the order of a patient: they wait as well, or the next is due.

    Each is the id of a delivery in an order, and when it is due again; None where it is finished.
    """
    PUT_OFF_THOSE_BEHIND.run(session, [(delivery_id, due_at) for delivery_id, due_at in ordered if due_at is not None])
    BRING_FORWARD_THE_NEXT.run(session, [(delivery_id,) for delivery_id, due_at in ordered if due_at is None])


def record_outcomes(session: Session, counted: Sequence[FinishedAttempt], now: datetime) -> Mapping[str, str]:
    """Tell the endpoints' circuits; those that have failed for too long, each with the reason."""
    tallies = tally(counted)
    succeeded = [endpoint_id for endpoint_id, each in tallies.items() if not each.failures]
    unclean = {endpoint_id for (endpoint_id,) in FAILING.fetch(session, ids=succeeded)} if succeeded else set()
    changing = [endpoint_id for endpoint_id, each in tallies.items() if each.failures or endpoint_id in unclean]
    if not changing:
        return {}
    before = {endpoint_id: Lane(*rest) for endpoint_id, _, *rest in LOCK_LANES.fetch(session, ids=changing)}
    after = {
        endpoint_id: record(lane, tallies[endpoint_id], now, _jitter()) for endpoint_id, lane in sorted(before.items())
    }
    SET_LANE.run(session, [(endpoint_id, *_take_lane(lane)) for endpoint_id, lane in after.items()])
    reasons = {endpoint_id: decide_disabling(lane, now) for endpoint_id, lane in after.items()}
    return {endpoint_id: reason for endpoint_id, reason in reasons.items() if reason is not None}


def tally(counted: Sequence[FinishedAttempt]) -> Mapping[str, Tally]:
    """What the results, in their order, came to at each endpoint. Interrupted attempts tell nothing of it."""
    succeeded: set[str] = set()
    failures: defaultdict[str, list[Failure]] = defaultdict(list)
    for each in counted:
        if each.succeeded:
            succeeded.add(each.endpoint_id)
            failures[each.endpoint_id].clear()
        elif each.blames_endpoint:
            failures[each.endpoint_id].append(Failure(each.attempt.started_at, each.attempt.reason))
    return {endpoint_id: Tally(endpoint_id in succeeded, each) for endpoint_id, each in failures.items()}


def disable(session: Session, endpoint_id: str, now: datetime) -> bool:
    """Disable an endpoint that has failed for too long, unless it has succeeded meanwhile; whether it was."""
    _lock_to_disable(session, [endpoint_id])
    LOCK_LEASED_AND_HELD.fetch(session, ids=(), endpoint_ids=[endpoint_id])
    for _, _, *rest in LOCK_LANES.fetch(session, ids=[endpoint_id]):
        if reason := decide_disabling(Lane(*rest), now):
            return _disable(session, endpoint_id, reason, now)
    return False


def recover_some(session: Session, now: datetime) -> int:
    """Record an interrupted attempt for some leases that ran out, and make their deliveries due; how many."""
    lost = LOST.fetch(session, now=now, most=RECOVERED_AT_ONCE)
    ADD_ATTEMPTS.run(session, [take_attempt(build_interrupted(*row)) for row in lost])
    RECOVER_LOST.run(session, [(delivery_id,) for delivery_id, *_ in lost])
    return len(lost)


def build_interrupted(delivery_id: str, leased_at: datetime, lease_until: datetime, attempt_count: int) -> Attempt:
    """The attempt that is recorded for a lease that ran out."""
    return Attempt(
        id=new_id(ATTEMPT),
        delivery_id=delivery_id,
        number=attempt_count + 1,
        started_at=leased_at,
        duration=(lease_until - leased_at).total_seconds(),
        outcome=AttemptOutcome.INTERRUPTED,
        status_code=None,
        reason=LOST_LEASE,
    )


def _lock_leased(
    session: Session, finished: Sequence[FinishedAttempt], gone: Collection[str]
) -> dict[tuple[str, int], _Leased]:
    """Each delivery under lease, by its id and the lease's token; all that will change but the lanes is locked."""
    ids = {each.delivery_id for each in finished}
    if gone:
        _lock_to_disable(session, gone)
        rows = LOCK_LEASED_AND_HELD.fetch(session, ids=ids, endpoint_ids=gone)
    else:
        rows = LOCK_LEASED.fetch(session, ids=ids)
    return {
        (delivery_id, token): _Leased(DeliveryState(state), order_key is not None)
        for delivery_id, token, state, until, order_key in rows
        if until
    }


def _lock_to_disable(session: Session, endpoint_ids: Collection[str]) -> None:
    """Before deliveries are locked: whoever accepts for these endpoints meanwhile comes first or sees it."""
    LOCK_ENDPOINTS.fetch(session, ids=endpoint_ids)
    REVISE_ORGANIZATIONS.fetch(session, ids=endpoint_ids)


def _disable(session: Session, endpoint_id: str, reason: str, now: datetime) -> bool:
    disabled = DISABLE.fetch(session, endpoint=endpoint_id, reason=reason, now=now)
    if disabled:
        HOLD.fetch(session, endpoint=endpoint_id)
    return bool(disabled)


take_attempt = attrgetter(*ATTEMPT_NAMES)
_take_lane = attrgetter(*LANE_NAMES)


def _decide_due(finished: FinishedAttempt, before: DeliveryState) -> datetime | None:
    """When the delivery is due again; None where it is finished."""
    return None if is_final(_find_next_state(finished, before)) else finished.due_at


def _find_next_state(finished: FinishedAttempt, before: DeliveryState) -> DeliveryState:
    """By the table of transitions. What cannot happen to a delivery leaves it as it is, and its neighbours alone."""
    return TRANSITIONS[before].get(finished.transition, before)


def _take_result(finished: FinishedAttempt, before: DeliveryState, now: datetime) -> tuple[Any, ...]:
    state = _find_next_state(finished, before)
    return (
        finished.delivery_id,
        state.value,
        _decide_due(finished, before),
        finished.attempt.number,
        int(finished.spends_retry),
        finished.attempt.started_at,
        now if is_final(state) else None,
    )


def _jitter() -> float:
    return random.uniform(-1, 1)  # noqa: S311 (spreads load, guards nothing)
