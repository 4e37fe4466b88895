"""Recording attempts within a session: what became of each delivery, and how it goes at its endpoint since."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from operator import attrgetter
from typing import Any

from carehook.ids import ATTEMPT, new_id
from carehook.ledger.circuit import Failure, Tally, decide_disabling, record
from carehook.ledger.connections.sessions import Session
from carehook.ledger.records import Attempt, AttemptOutcome, ClaimedDelivery, FinishedAttempt, Lane
from carehook.ledger.sql.parking import bring_forward, find_next
from carehook.ledger.sql.queue_statements import (
    ADD_ATTEMPTS,
    ATTEMPT_NAMES,
    ATTEMPTS_OF,
    DISABLE,
    FINISH,
    GIVE_BACK,
    LANE_NAMES,
    LOCK_ENDPOINTS,
    LOCK_LANES,
    LOCK_LEASED,
    LOCK_LOST,
    LOST,
    MARK_UNSETTLED,
    RECOVER_LOST,
    REVISE_ORGANIZATIONS,
    SET_LANE,
    TRY_LOST,
    WITHOUT_EVENT,
)
from carehook.ledger.states import TRANSITIONS, DeliveryState, Transition, is_final

LOST_LEASE = "the worker stopped before the outcome was known; the receiver may have got it"
NO_EVENT = "its event is not in the store, so there is nothing to send"

RECOVERED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Recorded:
    """Whether each result is on record, and the endpoints that have failed for too long, each with the reason."""

    counted: Sequence[bool]
    to_disable: Mapping[str, str]


def finish(session: Session, finished: Sequence[FinishedAttempt], now: datetime) -> Recorded:
    """Record attempts whose lease still holds, and move their deliveries."""
    gone = {each.endpoint_id: each.disable_reason for each in finished if each.disable_reason}
    if gone:
        _lock_to_disable(session, gone)
    lanes = lock_lanes(session, {each.endpoint_id for each in finished})
    order = find_next(session, {each.delivery_id for each in finished})
    states = _lock_leased(session, [*(each.delivery_id for each in finished), *filter(None, order.values())])
    # Taken out when it is counted, so that a result given twice counts once.
    found = [states.pop((each.delivery_id, each.lease_token), None) for each in finished]
    counted = [(each, state) for each, state in zip(finished, found, strict=True) if state is not None]
    late = [each for each, state in zip(finished, found, strict=True) if state is None]
    recorded = _find_recorded(session, late) if late else frozenset()
    FINISH.run(session, [_take_result(each, state, now) for each, state in counted])
    ADD_ATTEMPTS.run(session, [take_attempt(each.attempt) for each, _ in counted])
    bring_forward(session, order.keys())
    for endpoint_id in {each.endpoint_id for each, _ in counted if each.disable_reason}:
        _disable(session, endpoint_id, gone[endpoint_id] or "", now)
    to_disable = record_outcomes(session, lanes, [each for each, _ in counted], now)
    return Recorded(
        [state is not None or each.attempt.id in recorded for each, state in zip(finished, found, strict=True)],
        to_disable,
    )


def _find_recorded(session: Session, late: Sequence[FinishedAttempt]) -> frozenset[str]:
    """The attempts of these deliveries that are on record: one may be given again, where nobody heard that it was."""
    return frozenset(
        attempt_id for (attempt_id,) in ATTEMPTS_OF.fetch(session, ids={each.delivery_id for each in late})
    )


def lock_lanes(session: Session, endpoint_ids: Collection[str]) -> dict[str, Lane]:
    """How it goes at each of the endpoints, fixed until this transaction ends."""
    return {endpoint_id: Lane(*rest) for endpoint_id, _, *rest in LOCK_LANES.fetch(session, ids=endpoint_ids)}


def record_outcomes(
    session: Session, lanes: Mapping[str, Lane], counted: Sequence[FinishedAttempt], now: datetime
) -> Mapping[str, str]:
    """Tell the endpoints' circuits, whose lanes are locked; those that failed for too long, each with the reason."""
    tallies = tally(counted)
    after = {
        endpoint_id: record(lane, tallies[endpoint_id], now, _jitter())
        for endpoint_id, lane in sorted(lanes.items())
        if endpoint_id in tallies
    }
    changed = {endpoint_id: lane for endpoint_id, lane in after.items() if lane != lanes[endpoint_id]}
    SET_LANE.run(session, [(endpoint_id, *_take_lane(lane)) for endpoint_id, lane in changed.items()])
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
    for _, _, *rest in LOCK_LANES.fetch(session, ids=[endpoint_id]):
        if reason := decide_disabling(Lane(*rest), now):
            return _disable(session, endpoint_id, reason, now)
    return False


def give_back(session: Session, claimed: Sequence[ClaimedDelivery]) -> None:
    """End leases of deliveries that were not attempted."""
    lock_lanes(session, {each.endpoint.id for each in claimed})
    ids = {each.id for each in claimed}
    order = find_next(session, ids)
    LOCK_LEASED.fetch(session, ids=[*ids, *filter(None, order.values())])
    GIVE_BACK.run(session, [(each.id, each.lease_token) for each in claimed])
    bring_forward(session, order.keys())


def recover_some(session: Session, now: datetime) -> int:
    """Record an interrupted attempt for some leases that ran out, and make their deliveries due; how many.

    One whose event somebody has removed could never be sent, and is given up.
    """
    found = LOST.fetch(session, now=now, most=RECOVERED_AT_ONCE)
    if not found:
        return 0
    lanes = lock_lanes(session, {endpoint_id for _, endpoint_id, order_key in found if order_key is not None})
    in_order = [delivery_id for delivery_id, endpoint_id, _ in found if endpoint_id in lanes]
    order = find_next(session, in_order)
    locked = LOCK_LOST.fetch(session, ids=[*in_order, *filter(None, order.values())]) if in_order else []
    # Last, and waiting for none, so that one that somebody has locked keeps no other from being sent.
    free = TRY_LOST.fetch(session, ids={delivery_id for delivery_id, *_ in found}.difference(in_order))
    lost = {
        delivery_id: (DeliveryState(state), build_interrupted(delivery_id, leased_at, until, attempt_count))
        for delivery_id, endpoint_id, order_key, state, leased_at, until, attempt_count in [*locked, *free]
        # Others may have recovered it, or its endpoint was asked for order, since it was found.
        if until is not None and until <= now and (order_key is None or endpoint_id in lanes)
    }
    RECOVER_LOST.run(session, [(delivery_id,) for delivery_id in lost])
    without_event = {delivery_id for (delivery_id,) in WITHOUT_EVENT.fetch(session, ids=lost)}
    _give_up(session, [lost[delivery_id] for delivery_id in without_event], now)
    ADD_ATTEMPTS.run(
        session,
        [
            take_attempt(replace(attempt, reason=NO_EVENT) if delivery_id in without_event else attempt)
            for delivery_id, (_, attempt) in lost.items()
        ],
    )
    bring_forward(session, order.keys())
    return len(lost)


def _give_up(session: Session, lost: Sequence[tuple[DeliveryState, Attempt]], now: datetime) -> None:
    """Let deliveries in these states, each with its last attempt, be attempted no more."""
    FINISH.run(
        session,
        [
            (attempt.delivery_id, after, None, attempt.number, 0, attempt.started_at, now)
            for before, attempt in lost
            if (after := TRANSITIONS[before].get(Transition.EXHAUST)) is not None
        ],
    )


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


def _lock_leased(session: Session, delivery_ids: Collection[str]) -> dict[tuple[str, int], DeliveryState]:
    """The state of each of the deliveries under lease, by its id and the lease's token; all of them are locked."""
    rows = LOCK_LEASED.fetch(session, ids=delivery_ids)
    return {(delivery_id, token): DeliveryState(state) for delivery_id, token, state, until, _ in rows if until}


def _lock_to_disable(session: Session, endpoint_ids: Collection[str]) -> None:
    """Before deliveries are locked: whoever accepts for these endpoints meanwhile comes first or sees it."""
    LOCK_ENDPOINTS.fetch(session, ids=endpoint_ids)
    REVISE_ORGANIZATIONS.fetch(session, ids=endpoint_ids)


def _disable(session: Session, endpoint_id: str, reason: str, now: datetime) -> bool:
    """Under its locked lane. Its deliveries follow later, in parts: see `settling`."""
    disabled = DISABLE.fetch(session, endpoint=endpoint_id, reason=reason, now=now)
    if disabled:
        MARK_UNSETTLED.fetch(session, endpoint=endpoint_id, now=now)
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
