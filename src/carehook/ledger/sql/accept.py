"""Accepting events: what is known is read, what is decided is added, in one transaction and one trip."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime

import sqlalchemy as sa

from carehook.ledger.connections.sessions import INTEGRITY_ERRORS, Session
from carehook.ledger.port import DuplicateKey
from carehook.ledger.records import Additions, Answered, Known
from carehook.ledger.sql.deliveries import ADD_DELIVERIES, take_delivery
from carehook.ledger.sql.directory import FIX_ORGANIZATIONS, RECIPIENTS, build_endpoint
from carehook.ledger.sql.events import ADD_ANSWERS, ADD_EVENTS, take_answers, take_event
from carehook.ledger.sql.order import assign_positions
from carehook.ledger.sql.references import check_additions
from carehook.ledger.sql.statements import Ids, Prepared, among
from carehook.ledger.sql.tables import idempotency_keys

_key = idempotency_keys.c
_ANSWERS = Prepared(
    sa.select(_key.organization_id, _key.key, _key.fingerprint, _key.answer).where(
        among(_key.organization_id, sa.bindparam("organization_ids", type_=Ids())),
        among(_key.key, sa.bindparam("keys", type_=Ids())),
    )
)


def accept(
    session: Session,
    organization_ids: Collection[str],
    keys: Collection[tuple[str, str]],
    decide: Callable[[Known], Additions],
    now: datetime,
) -> frozenset[str]:
    """Add what `decide` says; the endpoints that this made deliveries for. See `port.Ledger.accept`."""
    organizations = frozenset(found for (found,) in FIX_ORGANIZATIONS.fetch(session, organization_ids=organization_ids))
    endpoints = RECIPIENTS.fetch(session, organization_ids=organizations)
    known = Known(organizations, [build_endpoint(row) for row in endpoints], _find_answers(session, keys))
    additions = decide(known)
    check_additions(additions, known)
    ADD_EVENTS.run(session, [take_event(event) for event in additions.events])
    positions = assign_positions(session, additions.deliveries)
    ADD_DELIVERIES.run(
        session,
        [take_delivery(delivery, position) for delivery, position in zip(additions.deliveries, positions, strict=True)],
    )
    try:
        ADD_ANSWERS.run(session, take_answers(additions.answers, now))
    except INTEGRITY_ERRORS:
        raise DuplicateKey("an idempotency key was just used") from None
    return frozenset(delivery.endpoint_id for delivery in additions.deliveries)


def _find_answers(session: Session, keys: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], Answered]:
    if not keys:
        return {}
    found = _ANSWERS.fetch(session, organization_ids={each for each, _ in keys}, keys={key for _, key in keys})
    return {
        (organization_id, key): Answered(fingerprint, answer)
        for organization_id, key, fingerprint, answer in found
        if (organization_id, key) in keys
    }
