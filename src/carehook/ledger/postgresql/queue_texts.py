"""The queue's statements on PostgreSQL. Each goes from arrays by index to the rows they name, and to no others.

They are written so that no statistics can make another plan of them: a plan that was good for a table of ten rows is
kept until somebody tells PostgreSQL that there are millions. Rows are locked in the order of their ids where they are
waited for, as everyone locks them.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Final

from carehook.ledger.states import TRANSITIONS, Transition, is_final

CLAIM: Final = """
WITH candidates AS (
    SELECT given.id, room, revision, is_limited
    FROM unnest($1::text[], $2::bigint[]) AS given (id, room)
    CROSS JOIN LATERAL (
        SELECT revision,
               max_in_flight IS NOT NULL OR rate_limit IS NOT NULL OR ordering <> 'none' OR opened_at IS NOT NULL
                   AS is_limited
        FROM endpoints
        JOIN lanes ON endpoint_id = id
        WHERE id = given.id AND status = 'active'
        LIMIT 1
    ) AS endpoint
), due AS (
    SELECT due.id
    FROM candidates
    CROSS JOIN LATERAL (
        SELECT deliveries.id
        FROM deliveries
        WHERE endpoint_id = candidates.id AND state = 'pending' AND lease_until IS NULL AND due_at <= $3
            -- What has just been put into an order goes only under its lane's lock.
            AND order_key IS NULL
        ORDER BY due_at
        LIMIT room
        -- What another claim is leasing, or a cancellation has locked, is passed over.
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS due
    WHERE NOT is_limited
), leased AS (
    UPDATE deliveries
    SET leased_at = $3, lease_until = $4, lease_token = lease_token + 1
    WHERE id = ANY (ARRAY(SELECT id FROM due))
    RETURNING id, lease_token, attempt_count, failure_count, due_at, event_id, event_type, endpoint_id
)
-- Each body comes once, with the first of its event's deliveries; numbered before they have bodies, which then are not
-- sorted with them.
SELECT id, lease_token, attempt_count, failure_count, due_at, event_id, event_type, endpoint_id, accepted_at, body,
       NULL AS revision, NULL AS is_limited
FROM (SELECT *, row_number() OVER (PARTITION BY event_id) AS number FROM leased) AS leased
CROSS JOIN LATERAL (
    SELECT created_at AS accepted_at, CASE WHEN number = 1 THEN body END AS body
    FROM events
    WHERE id = event_id
    LIMIT 1
) AS event
UNION ALL
-- The endpoints themselves: which revision of them is meant, and which are to be leased by their limits.
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, id, NULL, NULL, revision, is_limited
FROM candidates
"""

CURRENT: Final = """
SELECT given.id, lease_token, revision, current_setting('transaction_read_only')::boolean AS is_read_only
FROM unnest($1::text[]) AS given (id)
LEFT JOIN LATERAL (
    SELECT lease_token, revision
    FROM deliveries
    CROSS JOIN LATERAL (SELECT revision FROM endpoints WHERE id = endpoint_id AND status = 'active' LIMIT 1) AS endpoint
    -- Not `lease_until`, which says the same: its index leads to all leases there are.
    WHERE deliveries.id = given.id AND state = 'pending' AND leased_at IS NOT NULL
    LIMIT 1
) AS current ON true
"""


def _build_next_state() -> str:
    """The table of transitions, for the results that an attempt can have. What is not in it stays as it is."""
    results = (Transition.SUCCEED, Transition.RESCHEDULE, Transition.EXHAUST)
    cases = [
        f"WHEN state = '{before}' AND transition = '{transition}' THEN '{leaving[transition]}'"
        for before, leaving in TRANSITIONS.items()
        for transition in results
        if transition in leaving
    ]
    return "CASE " + " ".join(cases) + " ELSE state END"


_FINAL: Final = ", ".join(f"'{state}'" for state in TRANSITIONS if is_final(state))

FINISH: Final = f"""
WITH found AS (
    SELECT given.*, {_build_next_state()} AS next_state
    FROM (
        SELECT *
        FROM unnest($1::text[], $2::bigint[], $3::text[], $4::timestamptz[], $5::boolean[], $6::text[], $7::integer[],
                    $8::timestamptz[], $9::double precision[], $10::text[], $11::integer[], $12::text[], $13::bytea[])
            AS given (id, lease_token, transition, new_due_at, spends_retry, attempt_id, number,
                      started_at, duration, outcome, status_code, reason, sealed_excerpt)
        ORDER BY id
    ) AS given
    CROSS JOIN LATERAL (
        -- Under the lock the row is read anew: what a cancellation left that was waited for is what the result meets.
        SELECT state
        FROM deliveries
        -- Not `lease_until`, which says the same: by its index, all leases there are would be gone through.
        WHERE deliveries.id = given.id AND lease_token = given.lease_token AND leased_at IS NOT NULL
            -- What is in an order ends only under its lane's lock.
            AND order_key IS NULL
        LIMIT 1
        FOR NO KEY UPDATE
    ) AS leased
), moved AS (
    UPDATE deliveries
    SET state = next_state,
        due_at = CASE WHEN next_state IN ({_FINAL}) THEN NULL ELSE new_due_at END,
        finished_at = CASE WHEN next_state IN ({_FINAL}) THEN $15::timestamptz END,
        leased_at = NULL,
        lease_until = NULL,
        attempt_count = number,
        failure_count = failure_count + spends_retry::integer,
        last_attempt_at = started_at
    FROM found
    WHERE deliveries.id = found.id
    RETURNING found.*
), recorded AS (
    INSERT INTO attempts (delivery_id, number, id, started_at, duration, outcome, status_code, reason, sealed_excerpt)
    SELECT id, number, attempt_id, started_at, duration, outcome, status_code, reason, sealed_excerpt
    FROM moved
)
-- With the endpoints whose lanes know of failures, which a success would end.
SELECT id, lease_token,
       ARRAY(SELECT endpoint_id FROM lanes WHERE endpoint_id = ANY ($14::text[]) AND failure_streak > 0) AS failing
FROM moved
"""  # noqa: S608 (of our own tables alone)

take_result = attrgetter(
    "delivery_id",
    "lease_token",
    "transition.value",
    "due_at",
    "spends_retry",
    "attempt.id",
    "attempt.number",
    "attempt.started_at",
    "attempt.duration",
    "attempt.outcome.value",
    "attempt.status_code",
    "attempt.reason",
    "attempt.sealed_excerpt",
)
"""The values of a result, as `FINISH` takes them column by column."""

RESULT_WIDTH: Final = 13

GIVE_BACK: Final = """
UPDATE deliveries
SET leased_at = NULL, lease_until = NULL
FROM (
    SELECT given.id
    FROM (SELECT * FROM unnest($1::text[], $2::bigint[]) AS given (id, lease_token) ORDER BY id) AS given
    CROSS JOIN LATERAL (
        SELECT
        FROM deliveries
        WHERE deliveries.id = given.id AND lease_token = given.lease_token AND order_key IS NULL
        LIMIT 1
        FOR NO KEY UPDATE
    ) AS leased
) AS found
WHERE deliveries.id = found.id
RETURNING deliveries.id
"""
