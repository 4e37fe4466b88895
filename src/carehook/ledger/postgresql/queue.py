"""The queue on PostgreSQL: a batch is claimed, finished or given back by one statement, in one trip with one commit.

What is rare goes the way of every store (`claiming`, `finishing`), in a transaction of its own: endpoints with
limits, an order or an open circuit, results that disable an endpoint, and what failures tell of how it goes at one.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from operator import attrgetter, itemgetter
from typing import Final

import structlog
from asyncpg import Record

from carehook.ledger.connections.database import Database
from carehook.ledger.connections.postgresql import take_columns
from carehook.ledger.connections.sessions import Session
from carehook.ledger.port import LedgerUnavailable
from carehook.ledger.postgresql.notifications import Notifications
from carehook.ledger.postgresql.queue_texts import CLAIM, CURRENT, FINISH, GIVE_BACK, RESULT_WIDTH, take_result
from carehook.ledger.postgresql.recently_used import RecentlyUsed
from carehook.ledger.records import ClaimedDelivery, Endpoint, FinishedAttempt
from carehook.ledger.sql import claiming, finishing
from carehook.ledger.sql.claiming import Claim
from carehook.ledger.sql.directory import build_endpoint
from carehook.ledger.sql.finishing import Recorded
from carehook.ledger.sql.queue import QueueSql
from carehook.ledger.sql.queue_statements import ENDPOINTS_OF
from carehook.ledger.states import Ordering

_ENDPOINTS_KEPT: Final = 10_000
"""How many endpoints are known from memory, about one kilobyte each."""

_TRY_AGAIN_AFTER: Final = timedelta(seconds=1)
"""When to come back to endpoints that could not be claimed from, where others could."""

_log = structlog.get_logger("carehook.queue")


class QueuePostgresql(QueueSql):
    """See `port.Queue`. With `notifying`, processes tell each other what is due."""

    def __init__(self, database: Database, *, notifying: bool = True) -> None:
        super().__init__(database)
        self._connections = database.connections
        self._notifications = Notifications(database.connections, self.wake) if notifying else None
        self._endpoints: RecentlyUsed[str, Endpoint] = RecentlyUsed(_ENDPOINTS_KEPT)
        # Endpoints whose deliveries were in an order when some were last claimed here. That saves a trip and decides
        # nothing: each statement takes only what is in none.
        self._ordered: set[str] = set()

    def announce(self, endpoint_ids: Collection[str]) -> None:
        """Say to this process, and then to the others, that these endpoints may have something due."""
        self.wake(endpoint_ids)
        if self._notifications is not None:
            self._notifications.announce(endpoint_ids)

    async def claim(
        self, limit: int, *, room: Callable[[str], int], now: datetime, lease: timedelta
    ) -> Sequence[ClaimedDelivery]:
        """Lease due deliveries of endpoints that are on the agenda."""
        if self._notifications is not None:
            self._notifications.listen()
        return await super().claim(limit, room=room, now=now, lease=lease)

    async def close(self) -> None:
        """Tell what is left to tell, and hear no more."""
        if self._notifications is not None:
            await self._notifications.close()

    async def _claim(self, asked: dict[str, int], now: datetime, until: datetime) -> Claim:
        # On disk before anything is sent: a server that crashes while its workers live on must not forget a lease, or
        # its token would be given twice, and one would be sent again with nothing in the books to explain it.
        limited = {endpoint_id: room for endpoint_id, room in asked.items() if endpoint_id in self._ordered}
        plain = {endpoint_id: room for endpoint_id, room in asked.items() if endpoint_id not in limited}
        claimed = Claim()
        if plain:
            rows = await self._connections.fetch(CLAIM, list(plain), list(plain.values()), now, until)
            claimed = await self._build_plain(rows, asked, until)
            limited |= {row["endpoint_id"]: asked[row["endpoint_id"]] for row in rows if row["is_limited"]}
        if limited:
            claimed = _join(claimed, await self._claim_limited(limited, now, until, beside=claimed))
        return claimed

    async def _claim_limited(self, asked: Mapping[str, int], now: datetime, until: datetime, *, beside: Claim) -> Claim:
        """Lease by limits and order. Where that fails, what is leased already `beside` it is sent all the same."""
        try:
            claimed = await self._database.run(lambda session: claiming.claim(session, asked, now, until))
        except Exception as error:
            if not beside.deliveries:
                raise
            reason = {"reason": str(error)} if isinstance(error, LedgerUnavailable) else {"exc_info": error}
            _log.error("limited_endpoints_not_claimed", endpoints=len(asked), **reason)
            return Claim(ask_again=dict.fromkeys(asked, now + _TRY_AGAIN_AFTER))
        self._note_ordered(claimed.deliveries)
        return claimed

    def _note_ordered(self, claimed: Sequence[ClaimedDelivery]) -> None:
        found = {each.endpoint.id: each.endpoint.ordering is not Ordering.NONE for each in claimed}
        self._ordered -= found.keys()
        self._ordered |= {endpoint_id for endpoint_id, is_ordered in found.items() if is_ordered}

    async def _build_plain(self, rows: Sequence[Record], asked: Mapping[str, int], until: datetime) -> Claim:
        leased = sorted((row for row in rows if row["id"] is not None), key=itemgetter("due_at", "id"))
        counts = Counter(row["endpoint_id"] for row in leased)
        revisions = {row["endpoint_id"]: row["revision"] for row in rows if row["id"] is None}
        try:
            endpoints = await self._look_up({endpoint_id: revisions[endpoint_id] for endpoint_id in counts})
        except Exception:
            # Else nobody would know of these leases until they run out.
            with contextlib.suppress(LedgerUnavailable):
                await self._give_back_at_once([(row["id"], row["lease_token"]) for row in leased])
            raise
        bodies = {row["event_id"]: row["body"] for row in leased if row["body"] is not None}
        return Claim(
            deliveries=[
                ClaimedDelivery(
                    id=row["id"],
                    lease_token=row["lease_token"],
                    lease_until=until,
                    attempt_count=row["attempt_count"],
                    failure_count=row["failure_count"],
                    event_id=row["event_id"],
                    event_type=row["event_type"],
                    accepted_at=row["accepted_at"],
                    body=bodies[row["event_id"]],
                    endpoint=endpoints[row["endpoint_id"]],
                )
                for row in leased
            ],
            perhaps_more=[endpoint_id for endpoint_id, count in counts.items() if count >= asked[endpoint_id]],
        )

    async def _look_up(self, revisions: Mapping[str, int]) -> dict[str, Endpoint]:
        """Endpoints, no older than these revisions of them."""
        known = {endpoint_id: self._endpoints.get(endpoint_id) for endpoint_id in revisions}
        found = {each.id: each for each in known.values() if each is not None and each.revision >= revisions[each.id]}
        if unknown := revisions.keys() - found.keys():
            rows = await self._database.run(lambda session: ENDPOINTS_OF.fetch(session, ids=unknown))
            for endpoint in map(build_endpoint, rows):
                self._endpoints.put(endpoint.id, endpoint)
                found[endpoint.id] = endpoint
        return found

    async def _finish(self, finished: Sequence[FinishedAttempt], now: datetime) -> Recorded:
        """Record results; those of endpoints that failed, or are to be disabled, in one transaction with what follows.

        Were that a second one, an open circuit would let another request through between the two. With them goes what
        the statement leaves: what is in an order, and what has lost its lease.
        """
        apart = self._ordered | {each.endpoint_id for each in finished if each.blames_endpoint or each.disable_reason}
        plain = [each for each in finished if each.endpoint_id not in apart]
        at_once = await self._finish_at_once(plain, now) if plain else Recorded([], {})
        taken = iter(at_once.counted)
        counted = [each.endpoint_id not in apart and next(taken) for each in finished]
        left = [place for place, is_counted in enumerate(counted) if not is_counted]
        if not left:
            return at_once
        rest = await super()._finish([finished[place] for place in left], now)
        for place, is_counted in zip(left, rest.counted, strict=True):
            counted[place] = is_counted
        return Recorded(counted, {**at_once.to_disable, **rest.to_disable})

    async def _finish_at_once(self, finished: Sequence[FinishedAttempt], now: datetime) -> Recorded:
        # Of a result that is given twice the first one counts.
        first: dict[tuple[str, int], FinishedAttempt] = {}
        for each in finished:
            first.setdefault(_take_lease(each), each)
        once = list(first.values())
        rows = await self._connections.fetch(
            FINISH,
            *take_columns([take_result(each) for each in once], RESULT_WIDTH),
            list({each.endpoint_id for each in once}),
            now,
        )
        taken = {(row["id"], row["lease_token"]) for row in rows}
        failing = frozenset(rows[0]["failing"]) if rows else frozenset[str]()
        telling = [each for each in once if each.endpoint_id in failing and _take_lease(each) in taken]
        to_disable = await self._tell_lanes(telling, now)
        return Recorded([_take_out(taken, each) for each in finished], to_disable)

    async def _tell_lanes(self, telling: Sequence[FinishedAttempt], now: datetime) -> Mapping[str, str]:
        """Tell endpoints' lanes of results; which endpoints to disable, each with the reason."""

        def tell(session: Session) -> Mapping[str, str]:
            lanes = finishing.lock_lanes(session, {each.endpoint_id for each in telling})
            return finishing.record_outcomes(session, lanes, telling, now)

        if telling:
            # The results are on disk. That an endpoint's lane has not heard of a success costs a probe, no more.
            with contextlib.suppress(LedgerUnavailable):
                return await self._database.run(tell)
        return {}

    async def _give_back(self, claimed: Sequence[ClaimedDelivery]) -> None:
        plain = [(each.id, each.lease_token) for each in claimed if each.endpoint.id not in self._ordered]
        given_back = await self._give_back_at_once(plain) if plain else frozenset[str]()
        if left := [each for each in claimed if each.id not in given_back]:
            await super()._give_back(left)

    async def _give_back_at_once(self, leases: Sequence[tuple[str, int]]) -> frozenset[str]:
        """End leases, each an id and a token; the ids of those that are in no order, for only these were ended."""
        rows = await self._connections.fetch(GIVE_BACK, *take_columns(sorted(leases), 2), durable=False)
        return frozenset(row["id"] for row in rows)

    async def _read_current(self, delivery_ids: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        rows = await self._connections.fetch(CURRENT, delivery_ids, durable=False)
        if any(row["is_read_only"] for row in rows):
            # A standby answers too, and may be behind the server at which things are changed now.
            raise LedgerUnavailable("the database takes no writes: it is not the primary", rule="takes no writes")
        return {row["id"]: (row["lease_token"], row["revision"]) for row in rows}


_take_lease = attrgetter("delivery_id", "lease_token")


def _take_out(left: set[tuple[str, int]], finished: FinishedAttempt) -> bool:
    """Whether a result's lease is among those `left`, where it will be no more."""
    is_left = _take_lease(finished) in left
    left.discard(_take_lease(finished))
    return is_left


def _join(one: Claim, other: Claim) -> Claim:
    return Claim(
        deliveries=[*one.deliveries, *other.deliveries],
        perhaps_more=[*one.perhaps_more, *other.perhaps_more],
        ask_again={**one.ask_again, **other.ask_again},
        constrained=one.constrained | other.constrained,
    )
