"""What a delivery waits for: a pure explanation, for "why has it not arrived?"."""

from __future__ import annotations

from datetime import datetime

from carehook.insights.views import WaitKind, WaitView, describe_failures, format_instant
from carehook.ledger.records import Delivery, Endpoint, Lane, Prospect
from carehook.ledger.states import DeliveryState, EndpointStatus


def explain_wait(delivery: Delivery, prospect: Prospect | None, now: datetime) -> WaitView | None:
    """What keeps it from being attempted now; None where a request is in flight or nothing more happens to it.

    Of several things, the one that lasts: without it resolved, nothing else matters.
    """
    if prospect is None or delivery.lease_until is not None:
        return None
    endpoint, lane = prospect.endpoint, prospect.lane
    if delivery.state is DeliveryState.HELD or endpoint.status is not EndpointStatus.ACTIVE:
        return _wait(WaitKind.ENDPOINT, _describe_stop(endpoint))
    if prospect.earlier_delivery_id is not None:
        detail = f"An earlier delivery of the same patient, {prospect.earlier_delivery_id}, is not finished."
        return _wait(WaitKind.ORDER, detail, delivery_id=prospect.earlier_delivery_id)
    due_at = delivery.due_at
    if due_at is None:
        return _wait(WaitKind.ORDER, "A later delivery of the same patient is in flight, and this one follows it.")
    if lane.opened_at is not None and due_at <= max(lane.probe_at or now, now):
        return _wait(WaitKind.CIRCUIT, _describe_circuit(lane, now), since=lane.opened_at, until=lane.probe_at)
    if due_at > now:
        detail = f"The next attempt is due at {format_instant(due_at)}."
        return _wait(WaitKind.SCHEDULE, detail, since=delivery.last_attempt_at, until=due_at)
    return _wait(WaitKind.TURN, f"It is due, and goes as soon as {_describe_turn(endpoint)}.", since=due_at)


def _wait(
    kind: WaitKind,
    detail: str,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    delivery_id: str | None = None,
) -> WaitView:
    return WaitView(kind=kind, detail=detail, since=since, until=until, delivery_id=delivery_id)


def _describe_stop(endpoint: Endpoint) -> str:
    # Deliveries follow a new status in parts: this one's turn is yet to come.
    if endpoint.status is EndpointStatus.ACTIVE:
        return "The endpoint was resumed, and what was held for it is being released."
    if endpoint.status is EndpointStatus.DELETED:
        return "The endpoint was deleted, and what waited for it is being cancelled."
    reason = f": {endpoint.status_reason}" if endpoint.status_reason else ""
    return f"The endpoint is {endpoint.status}{reason}. Resume it to go on."


def _describe_circuit(lane: Lane, now: datetime) -> str:
    failed = describe_failures(lane.failure_streak, lane.last_failure)
    opened = f"The endpoint's circuit is open since {format_instant(lane.opened_at)}, after {failed}."
    if lane.probe_at is None or lane.probe_at <= now:
        return f"{opened} A request is tried now; the rest follows when one succeeds."
    return f"{opened} The next request is tried at {format_instant(lane.probe_at)}; the rest follows when one succeeds."


def _describe_turn(endpoint: Endpoint) -> str:
    limits = []
    if endpoint.max_in_flight is not None:
        limits.append(f"{endpoint.max_in_flight} in flight")
    if endpoint.rate_limit is not None:
        limits.append(f"{endpoint.rate_limit:g} a second")
    if limits:
        return f"the endpoint's limits allow it (requests: {' and '.join(limits)} at most)"
    return "a worker has room for it"
