"""Accepting events on PostgreSQL: one statement, one trip and one commit for all that publishers submitted meanwhile.

Endpoints are known from memory, together with the revision of their organization, which grows with every change of
them. The statement adds nothing unless the revisions are still those, and it keeps them until it is committed: so who
receives is decided by the endpoints as they are, and a pause or a deletion comes wholly before it or wholly after.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from operator import attrgetter
from typing import Any, Final

import orjson
import sqlalchemy as sa
from asyncpg import Record

from carehook.ledger.connections.database import Database
from carehook.ledger.connections.postgresql import StatementError, take_columns
from carehook.ledger.connections.sessions import Session
from carehook.ledger.port import DuplicateKey
from carehook.ledger.postgresql.recently_used import RecentlyUsed
from carehook.ledger.records import Additions, Answered, Endpoint, Known, NewDelivery
from carehook.ledger.sql.accept import accept
from carehook.ledger.sql.directory import RECIPIENTS, build_endpoint
from carehook.ledger.sql.references import check_additions
from carehook.ledger.sql.statements import Ids, Prepared, among
from carehook.ledger.sql.tables import organizations

_ENDPOINTS_KEPT: Final = 20_000
"""How many endpoints are known from memory, about one kilobyte each."""

_TRIES: Final = 3
"""How often what is known from memory may be found to have changed before it is read under lock instead."""

ACCEPT: Final = """
WITH unchanged AS (
    -- FOR SHARE waits for whoever is changing one of the endpoints, compares the revision that this leaves behind, and
    -- keeps others from changing any until we have committed.
    SELECT organization.id
    FROM (SELECT * FROM unnest($1::text[], $2::bigint[]) AS given (id, revision) ORDER BY id) AS given
    CROSS JOIN LATERAL (
        SELECT id
        FROM organizations
        WHERE id = given.id AND revision = given.revision
        LIMIT 1
        FOR SHARE
    ) AS organization
), answered AS (
    SELECT given.*, fingerprint, answer
    FROM unnest($22::text[], $23::text[]) AS given (organization_id, key)
    CROSS JOIN LATERAL (
        SELECT fingerprint, answer
        FROM idempotency_keys
        WHERE organization_id = given.organization_id AND key = given.key
        LIMIT 1
    ) AS known
), permitted AS (
    SELECT unchanged.count = cardinality($1) AS is_unchanged,
           unchanged.count = cardinality($1) AND NOT EXISTS (SELECT FROM answered) AS is_permitted
    FROM (SELECT count(*) FROM unchanged) AS unchanged
), new_answers AS (
    -- Named first, this is done last, as everyone does it: after the positions.
    INSERT INTO idempotency_keys (organization_id, key, fingerprint, answer, created_at)
    SELECT organization_id, key, fingerprint, answer::json, $30
    FROM unnest($24::text[], $25::text[], $26::text[], $27::text[])
        AS given (organization_id, key, fingerprint, answer)
    WHERE (SELECT is_permitted FROM permitted)
), new_events AS (
    -- The bodies come in one piece, which costs the driver a fifth of what as many values would.
    INSERT INTO events (id, organization_id, type, occurred_on, is_test, created_at, patient_key, body)
    SELECT id, organization_id, type, occurred_on, is_test, created_at, patient_key,
           substring($10::bytea FROM body_begin FOR body_length)
    FROM (
        -- Not `FROM unnest(…)`, which would write each column down before it joins them.
        SELECT unnest($3::text[]) AS id, unnest($4::text[]) AS organization_id, unnest($5::text[]) AS type,
               unnest($6::double precision[]) AS occurred_on, unnest($7::boolean[]) AS is_test,
               unnest($8::timestamptz[]) AS created_at, unnest($9::text[]) AS patient_key,
               unnest($11::integer[]) AS body_begin, unnest($12::integer[]) AS body_length
    ) AS given
    WHERE (SELECT is_permitted FROM permitted)
), counted AS (
    -- One after another in the order of their ids, as everyone locks them; none, but for endpoints that ask for order.
    UPDATE positions
    SET last_position = last_position + given.count
    FROM (SELECT * FROM unnest($28::text[], $29::bigint[]) AS given (endpoint_id, count) ORDER BY 1) AS given
    WHERE positions.endpoint_id = given.endpoint_id AND positions.endpoint_id = ANY ($28)
        AND (SELECT is_permitted FROM permitted)
    RETURNING positions.endpoint_id, last_position - given.count AS position
), new_deliveries AS (
    INSERT INTO deliveries (id, event_id, endpoint_id, organization_id, event_type, state, created_at, due_at,
                            order_key, position)
    SELECT id, event_id, given.endpoint_id, organization_id, event_type, state, created_at, created_at,
           order_key, counted.position + place
    FROM (
        SELECT unnest($13::text[]) AS id, unnest($14::text[]) AS event_id, unnest($15::text[]) AS endpoint_id,
               unnest($16::text[]) AS organization_id, unnest($17::text[]) AS event_type, unnest($18::text[]) AS state,
               unnest($19::timestamptz[]) AS created_at, unnest($20::text[]) AS order_key,
               unnest($21::bigint[]) AS place
    ) AS given
    LEFT JOIN counted ON order_key IS NOT NULL AND counted.endpoint_id = given.endpoint_id
    WHERE (SELECT is_permitted FROM permitted)
)
SELECT is_unchanged, organization_id, key, fingerprint, answer::text
FROM permitted LEFT JOIN answered ON true
"""

_REVISIONS = Prepared(
    sa.select(organizations.c.id, organizations.c.revision).where(
        among(organizations.c.id, sa.bindparam("organization_ids", type_=Ids()))
    )
)


@dataclass(frozen=True, slots=True)
class _Organization:
    """An organization's endpoints, at least as new as the revision: where they are newer, it is found to have grown."""

    revision: int
    endpoints: Sequence[Endpoint]


class AcceptPostgresql:
    """What `port.Ledger.accept` does, with what it remembers of organizations."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connections = database.connections
        self._organizations: RecentlyUsed[str, _Organization] = RecentlyUsed(_ENDPOINTS_KEPT)

    async def accept(
        self,
        organization_ids: Collection[str],
        keys: Collection[tuple[str, str]],
        decide: Callable[[Known], Additions],
        now: datetime,
    ) -> frozenset[str]:
        """Add what `decide` says; the endpoints that this made deliveries for."""
        answered: dict[tuple[str, str], Answered] = {}
        for _ in range(_TRIES):
            present = await self._look_up(organization_ids)
            endpoints = [endpoint for each in present.values() for endpoint in each.endpoints]
            told = Known(frozenset(present), endpoints, answered)
            additions = decide(told)
            check_additions(additions, told)
            rows = await self._add(present, [key for key in keys if key not in answered], additions, now)
            found = _find_answers(rows)
            answered.update(found)
            if not rows[0]["is_unchanged"]:
                for organization_id in present:
                    self._organizations.forget(organization_id)
            elif not found:
                return frozenset(delivery.endpoint_id for delivery in additions.deliveries)
        return await self._database.run(lambda session: accept(session, organization_ids, keys, decide, now))

    async def _add(
        self,
        present: Mapping[str, _Organization],
        keys: Sequence[tuple[str, str]],
        additions: Additions,
        now: datetime,
    ) -> Sequence[Record]:
        """What the statement gives: whether the organizations are unchanged, and former answers to any of `keys`."""
        try:
            return await self._connections.fetch(
                ACCEPT,
                *take_columns([(organization_id, each.revision) for organization_id, each in present.items()], 2),
                *take_columns([_take_event(event) for event in additions.events], 7),
                *_join_bodies([event.body for event in additions.events]),
                *take_columns(_take_deliveries(additions.deliveries), 9),
                *take_columns(keys, 2),
                *take_columns(_take_answers(additions.answers), 4),
                *take_columns(_count_ordered(additions.deliveries), 2),
                now,
            )
        except StatementError as error:
            if error.constraint == "pk_idempotency_keys":
                raise DuplicateKey("an idempotency key was just used") from None
            raise

    async def _look_up(self, organization_ids: Collection[str]) -> dict[str, _Organization]:
        """Those of the organizations that there are."""
        known = {organization_id: self._organizations.get(organization_id) for organization_id in organization_ids}
        unknown = [organization_id for organization_id, each in known.items() if each is None]
        if unknown:
            read = await self._database.run(lambda session: _read(session, unknown))
            for organization_id, each in read.items():
                self._organizations.put(organization_id, each, 1 + len(each.endpoints))
            known.update(read)
        return {organization_id: each for organization_id, each in known.items() if each is not None}


def _read(session: Session, organization_ids: Collection[str]) -> dict[str, _Organization]:
    # The revisions first: a change between the two statements then shows as one.
    revisions: dict[str, int] = dict(_REVISIONS.fetch(session, organization_ids=organization_ids))
    endpoints: dict[str, list[Endpoint]] = {organization_id: [] for organization_id in revisions}
    for endpoint in map(build_endpoint, RECIPIENTS.fetch(session, organization_ids=revisions)):
        endpoints[endpoint.organization_id].append(endpoint)
    return {each: _Organization(revision, endpoints[each]) for each, revision in revisions.items()}


def _find_answers(rows: Sequence[Record]) -> dict[tuple[str, str], Answered]:
    return {
        (organization_id, key): Answered(fingerprint, orjson.loads(answer))
        for _, organization_id, key, fingerprint, answer in rows
        if organization_id is not None
    }


_take_event = attrgetter("id", "organization_id", "type", "occurred_on", "is_test", "created_at", "patient_key")


def _join_bodies(bodies: Sequence[bytes]) -> tuple[bytes, Sequence[int], Sequence[int]]:
    """The bodies one after another, and where each begins, from 1, and its length."""
    lengths = list(map(len, bodies))
    return b"".join(bodies), list(accumulate(lengths, initial=1))[:-1], lengths


_take_delivery = attrgetter(
    "id", "event_id", "endpoint_id", "organization_id", "event_type", "state.value", "created_at", "order_key"
)


def _take_deliveries(deliveries: Sequence[NewDelivery]) -> list[tuple[Any, ...]]:
    """A row for each, whose last column is its place among the batch's at an endpoint that asks for order."""
    places: Counter[str] = Counter()
    rows = []
    for delivery in deliveries:
        place = None
        if delivery.order_key is not None:
            places[delivery.endpoint_id] += 1
            place = places[delivery.endpoint_id]
        rows.append((*_take_delivery(delivery), place))
    return rows


def _count_ordered(deliveries: Sequence[NewDelivery]) -> list[tuple[str, int]]:
    return list(Counter(each.endpoint_id for each in deliveries if each.order_key is not None).items())


def _take_answers(answers: Mapping[tuple[str, str], Answered]) -> list[tuple[str, str, str, str]]:
    """A row for each, in the order of their keys, in which everyone adds them."""
    return [
        (organization_id, key, answered.fingerprint, orjson.dumps(dict(answered.answer)).decode())
        for (organization_id, key), answered in sorted(answers.items(), key=lambda item: item[0])
    ]
