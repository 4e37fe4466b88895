"""What a store holds after it was mistreated."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sqlalchemy as sa

from carehook.ledger.connections.database import Database, parse_database_url

_GONE = 410


@dataclass(frozen=True)
class Delivery:
    """A row of the deliveries with how its attempts ended."""

    event_id: str
    endpoint_id: str
    state: str
    attempt_count: int
    lease_until: object
    outcomes: Sequence[str]
    numbers: Sequence[int]
    statuses: Sequence[int | None]

    @cached_property
    def ends(self) -> Counter[str]:
        """How many attempts ended in each way."""
        return Counter(self.outcomes)

    @property
    def is_cut_off(self) -> bool:
        """Whether nobody but the receiver knows when one of its requests ended."""
        return self.ends["interrupted"] + self.ends["unreachable"] > 0

    @property
    def failures(self) -> int:
        """Attempts that each spent a retry."""
        refused = [status for status in self.statuses if status is not None and not 200 <= status <= 299]
        return self.ends["unreachable"] + sum(status != _GONE for status in refused)

    @property
    def successes(self) -> Sequence[bool]:
        """Of each attempt, whether it was answered with 2xx."""
        return [status is not None and 200 <= status <= 299 for status in self.statuses]


class Store:
    """Every row that matters."""

    def __init__(self, database_url: str) -> None:
        asyncio.run(self._read(database_url))

    async def _read(self, database_url: str) -> None:
        database = Database(parse_database_url(database_url))

        async def select(columns: str, table: str) -> Sequence[Any]:
            async with database.read() as connection:
                return (await connection.execute(sa.text(f"SELECT {columns} FROM {table}"))).all()

        self.bodies = {row.id: bytes(row.body) for row in await select("id, body", "events")}
        self.events = {event_id: json.loads(body) for event_id, body in self.bodies.items()}
        attempts: dict[str, list[Any]] = defaultdict(list)
        for row in await select("delivery_id, number, outcome, status_code", "attempts ORDER BY delivery_id, number"):
            attempts[row.delivery_id].append(row)
        self.deliveries = [
            Delivery(
                row.event_id,
                row.endpoint_id,
                row.state,
                row.attempt_count,
                row.lease_until,
                [each.outcome for each in attempts[row.id]],
                [each.number for each in attempts[row.id]],
                [each.status_code for each in attempts[row.id]],
            )
            for row in await select("id, event_id, endpoint_id, state, attempt_count, lease_until", "deliveries")
        ]
        self.consultations = {row.id: row.finished_event_id for row in await select("*", "consultations")}
        self.reports = {row.id: row.event_id for row in await select("id, event_id", "reports")}
        await database.close()

    @property
    def finished(self) -> dict[str, str]:
        """The consultations that are finished, each with its event."""
        return {name: event_id for name, event_id in self.consultations.items() if event_id is not None}
