"""The queue's statements, built once.

A claim looks only through rows that wait, and through no more of one endpoint's than it may take, so that a long
backlog costs its neighbours nothing. The survey, which finds the endpoints to look at, hops over the partial index from
one to the next.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import sqlalchemy as sa

from carehook.ledger.records import Attempt, Lane
from carehook.ledger.sql.statements import Bulk, Ids, Prepared, among, lock_deliveries
from carehook.ledger.sql.tables import (
    LEASED,
    WAITING,
    attempts,
    deliveries,
    endpoints,
    events,
    lanes,
    organizations,
)
from carehook.ledger.states import DeliveryState, EndpointStatus

_ids = sa.bindparam("ids", type_=Ids())


def _build_survey() -> sa.Select[Any]:
    """Each endpoint for which something waits, with the instant it is to be tried, the longest due first.

    That is when its first delivery is due, or when its open circuit lets one through.

    A recursive query that asks the index for the next greater endpoint, once per endpoint.
    """
    first = sa.select(sa.func.min(deliveries.c.endpoint_id).label("endpoint_id")).where(WAITING)
    hops = first.cte("hops", recursive=True)
    next_endpoint = (
        sa.select(sa.func.min(deliveries.c.endpoint_id))
        .where(WAITING, deliveries.c.endpoint_id > hops.c.endpoint_id)
        .scalar_subquery()
    )
    hops = hops.union_all(sa.select(next_endpoint).where(hops.c.endpoint_id.is_not(None)))
    due_at = (
        sa.select(sa.func.min(deliveries.c.due_at))
        .where(WAITING, deliveries.c.endpoint_id == hops.c.endpoint_id)
        .scalar_subquery()
        .label("due_at")
    )
    found = sa.select(hops.c.endpoint_id, due_at).where(hops.c.endpoint_id.is_not(None)).subquery()
    tried_at = sa.case(
        (lanes.c.opened_at.is_not(None) & (lanes.c.probe_at > found.c.due_at), lanes.c.probe_at), else_=found.c.due_at
    ).label("tried_at")
    with_lanes = found.join(lanes, lanes.c.endpoint_id == found.c.endpoint_id)
    return (
        sa.select(found.c.endpoint_id, tried_at)
        .select_from(with_lanes)
        .where(found.c.due_at.is_not(None))
        .order_by(tried_at)
    )


SURVEY = Prepared(_build_survey())

_in_flight = sa.select(sa.func.count()).where(LEASED, deliveries.c.endpoint_id == endpoints.c.id).scalar_subquery()
IN_FLIGHT = Prepared(sa.select(endpoints.c.id, _in_flight).where(among(endpoints.c.id, _ids)))

LANE_NAMES = [field.name for field in dataclasses.fields(Lane)]
_lane_columns = [lanes.c[name] for name in LANE_NAMES]
CANDIDATES = Prepared(
    sa.select(
        endpoints.c.id, endpoints.c.max_in_flight, endpoints.c.rate_limit, endpoints.c.ordering, lanes.c.opened_at
    )
    .join_from(endpoints, lanes)
    .where(among(endpoints.c.id, _ids), endpoints.c.status == EndpointStatus.ACTIVE)
)
LOCK_LANES = Prepared(
    sa.select(lanes.c.endpoint_id, lanes.c.next_slot_at, *_lane_columns)
    .where(among(lanes.c.endpoint_id, _ids))
    .order_by(lanes.c.endpoint_id)
    .with_for_update(key_share=True)
)
TRY_LANES = Prepared(
    sa.select(lanes.c.endpoint_id, lanes.c.next_slot_at, *_lane_columns)
    .where(among(lanes.c.endpoint_id, _ids))
    .order_by(lanes.c.endpoint_id)
    .with_for_update(key_share=True, skip_locked=True)
)
SET_LANE = Bulk(
    lanes.update()
    .where(lanes.c.endpoint_id == sa.bindparam("endpoint"))
    .values({name: sa.bindparam(f"new_{name}") for name in LANE_NAMES}),
    ["endpoint", *(f"new_{name}" for name in LANE_NAMES)],
)
SET_SLOT = Bulk(
    lanes.update().where(lanes.c.endpoint_id == sa.bindparam("endpoint")).values(next_slot_at=sa.bindparam("slot")),
    ["endpoint", "slot"],
)


def _build_lease(which: sa.ColumnElement[bool]) -> sa.UpdateBase:
    """An update that leases deliveries and gives back what it leased."""
    of = deliveries.c
    leased = deliveries.update().where(which)
    return leased.values(
        leased_at=sa.bindparam("now"), lease_until=sa.bindparam("until"), lease_token=of.lease_token + 1
    ).returning(
        of.due_at,
        of.id,
        of.lease_token,
        of.attempt_count,
        of.failure_count,
        of.event_id,
        of.event_type,
        of.endpoint_id,
    )


def _build_first_due(dialect: str) -> sa.Select[Any]:
    """The first `share` due deliveries of each endpoint that are in no order: those go only under its lane's lock."""
    first_due = (
        sa.select(deliveries.c.id)
        .where(
            WAITING,
            deliveries.c.endpoint_id == endpoints.c.id,
            deliveries.c.due_at <= sa.bindparam("now"),
            deliveries.c.order_key.is_(None),
        )
        .order_by(deliveries.c.due_at)
        .limit(sa.bindparam("share"))
    )
    if dialect == "sqlite":
        pairs = endpoints.join(deliveries, deliveries.c.id.in_(first_due.correlate(endpoints)))
        chosen = sa.select(deliveries.c.id).select_from(pairs)
    else:
        lateral = first_due.with_for_update(skip_locked=True, key_share=True).lateral()
        chosen = sa.select(lateral.c.id).select_from(endpoints.join(lateral, sa.true()))
    chosen = chosen.where(among(endpoints.c.id, _ids), endpoints.c.status == EndpointStatus.ACTIVE)
    if dialect == "postgresql":
        # Chosen once: a subquery that a plan runs again finds others meanwhile, and the update leases more than it may.
        chosen = sa.select(chosen.cte("chosen").prefix_with("MATERIALIZED").c.id)
    return chosen


LEASE = {
    dialect: Prepared(_build_lease(deliveries.c.id.in_(_build_first_due(dialect))))
    for dialect in ("sqlite", "postgresql")
}
LEASE_THESE = Prepared(_build_lease(among(deliveries.c.id, _ids)))
EVENTS_OF = Prepared(sa.select(events.c.id, events.c.created_at, events.c.body).where(among(events.c.id, _ids)))
ENDPOINTS_OF = Prepared(sa.select(endpoints).where(among(endpoints.c.id, _ids)))
CURRENT = (
    sa.select(deliveries.c.id, deliveries.c.lease_token, endpoints.c.revision)
    .join_from(deliveries, endpoints, endpoints.c.id == deliveries.c.endpoint_id)
    .where(
        among(deliveries.c.id, _ids),
        deliveries.c.state == DeliveryState.PENDING,
        # Not `lease_until`, which says the same: its index leads to all leases there are.
        deliveries.c.leased_at.is_not(None),
        endpoints.c.status == EndpointStatus.ACTIVE,
    )
)
"""Of those that are pending under a lease and may be sent: its token, and the revision of the endpoint."""


FINISH = Bulk(
    deliveries.update()
    .where(deliveries.c.id == sa.bindparam("delivery"))
    .values(
        state=sa.bindparam("new_state"),
        due_at=sa.bindparam("new_due_at"),
        leased_at=sa.null(),
        lease_until=sa.null(),
        attempt_count=sa.bindparam("attempts"),
        failure_count=deliveries.c.failure_count + sa.bindparam("spent"),
        last_attempt_at=sa.bindparam("attempted_at"),
        finished_at=sa.bindparam("ended_at"),
    ),
    ["delivery", "new_state", "new_due_at", "attempts", "spent", "attempted_at", "ended_at"],
)

GIVE_BACK = Bulk(
    deliveries.update()
    .where(deliveries.c.id == sa.bindparam("delivery"), deliveries.c.lease_token == sa.bindparam("token"))
    .values(leased_at=sa.null(), lease_until=sa.null()),
    ["delivery", "token"],
)

RECOVER_LOST = Bulk(
    deliveries.update()
    .where(deliveries.c.id == sa.bindparam("delivery"))
    .values(
        leased_at=sa.null(),
        lease_until=sa.null(),
        attempt_count=deliveries.c.attempt_count + sa.literal_column("1"),
        last_attempt_at=deliveries.c.leased_at,
    ),
    ["delivery"],
)

WITHOUT_EVENT = Prepared(
    sa.select(deliveries.c.id).where(
        among(deliveries.c.id, _ids), ~sa.select(events.c.id).where(events.c.id == deliveries.c.event_id).exists()
    )
)

ATTEMPT_NAMES = [field.name for field in dataclasses.fields(Attempt)]
ATTEMPTS_OF = Prepared(sa.select(attempts.c.id).where(among(attempts.c.delivery_id, _ids)))
ADD_ATTEMPTS = Bulk(attempts.insert(), ATTEMPT_NAMES)


_finished = among(deliveries.c.id, _ids)
_lease_columns = (
    deliveries.c.id,
    deliveries.c.lease_token,
    deliveries.c.state,
    deliveries.c.lease_until,
    deliveries.c.order_key,
)
LOCK_LEASED = Prepared(lock_deliveries(_finished, *_lease_columns))
LOCK_ENDPOINTS = Prepared(
    sa.select(endpoints.c.id)
    .where(among(endpoints.c.id, _ids))
    .order_by(endpoints.c.id)
    .with_for_update(key_share=True)
)

DISABLE = Prepared(
    endpoints.update()
    .where(endpoints.c.id == sa.bindparam("endpoint"), endpoints.c.status == EndpointStatus.ACTIVE)
    .values(
        status=EndpointStatus.DISABLED,
        status_reason=sa.bindparam("reason"),
        updated_at=sa.bindparam("now"),
        revision=endpoints.c.revision + sa.literal_column("1"),
    )
    .returning(endpoints.c.id)
)
_revised = (
    sa.select(organizations.c.id)
    .where(organizations.c.id.in_(sa.select(endpoints.c.organization_id).where(among(endpoints.c.id, _ids))))
    .order_by(organizations.c.id)
    .with_for_update(key_share=True)
)
REVISE_ORGANIZATIONS = Prepared(
    organizations.update()
    .where(organizations.c.id.in_(_revised))
    .values(revision=organizations.c.revision + sa.literal_column("1"))
)

MARK_UNSETTLED = Prepared(
    lanes.update().where(lanes.c.endpoint_id == sa.bindparam("endpoint")).values(unsettled_since=sa.bindparam("now"))
)

_ran_out = deliveries.c.lease_until <= sa.bindparam("now")
LOST = Prepared(
    sa.select(deliveries.c.id, deliveries.c.endpoint_id, deliveries.c.order_key)
    .where(_ran_out)
    .order_by(deliveries.c.lease_until)
    .limit(sa.bindparam("most"))
)
_lost = lock_deliveries(
    among(deliveries.c.id, _ids),
    deliveries.c.id,
    deliveries.c.endpoint_id,
    deliveries.c.order_key,
    deliveries.c.state,
    deliveries.c.leased_at,
    deliveries.c.lease_until,
    deliveries.c.attempt_count,
)
LOCK_LOST = Prepared(_lost)
TRY_LOST = Prepared(_lost.with_for_update(key_share=True, skip_locked=True))
"""Those that no other transaction has locked."""
