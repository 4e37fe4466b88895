"""Carehook on a store of a test's own, embedded or on PostgreSQL, and ledgers that count or fail for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final, cast

from pydantic import SecretStr

from carehook.application import Application
from carehook.config import Settings
from carehook.directory.endpoints import EndpointWithSecrets, NewEndpoint
from carehook.directory.organizations import NewOrganization
from carehook.insights import DeliveryView, EventView
from carehook.ledger.port import Ledger, Transaction
from carehook.ledger.records import Additions, DeliveryFilter, Known, PageRequest

NOON: Final = datetime(2024, 1, 1, 12, tzinfo=UTC)
ALL: Final = PageRequest(limit=1000)
NOWHERE: Final = "http://127.0.0.1:9/hook"
"""A URL that such settings allow, for tests that send nothing."""


class SetClock:
    """A clock that stands still until it is set."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **parts: float) -> None:
        """Move on, by the parts of a `timedelta`."""
        self.now += timedelta(**parts)


def build_settings(home: Path, database_url: str | None = None) -> Settings:
    """Settings of a Carehook whose endpoints may lie on loopback."""
    return Settings(
        home=home,
        database_url=SecretStr(database_url) if database_url else None,
        allow_http=True,
        allowed_networks=(ip_network("127.0.0.0/8"),),
    )


async def create_organization(carehook: Application, name: str = "Example Hospital") -> str:
    """The id of a new organization."""
    return (await carehook.organizations.create(NewOrganization(name=name))).id


async def register(carehook: Application, organization_id: str, **fields: Any) -> EndpointWithSecrets:
    """A new endpoint of an organization, to which nothing can be sent."""
    return await carehook.endpoints.register(organization_id, NewEndpoint(**{"url": NOWHERE, **fields}))


async def list_events(carehook: Application, organization_id: str) -> list[EventView]:
    """All events of an organization, newest first."""
    return (await carehook.insights.events(organization_id, ALL)).data


async def list_deliveries(carehook: Application, organization_id: str) -> list[DeliveryView]:
    """All deliveries of an organization, newest first."""
    return (await carehook.insights.deliveries(organization_id, DeliveryFilter(), ALL)).data


async def read_body(carehook: Application, event_id: str) -> bytes:
    """The body that every attempt of an event sends."""
    async with carehook.ledger.snapshot() as snapshot:
        event = await snapshot.events.get(event_id)
    assert event is not None
    return event.body


class PowerCut(Exception):
    """What a `WatchedLedger` fails with."""


class WatchedLedger:
    """A ledger that counts its transactions and the steps in them, and fails after step `fail_after` of all.

    Every call of a method in a transaction is a step, and so is the end of its block, which comes before the commit.
    """

    def __init__(self, ledger: Ledger, fail_after: int | None = None) -> None:
        self._ledger = ledger
        self.fail_after = fail_after
        self.transactions = 0
        self.steps = 0

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """A transaction of the ledger, watched."""
        self.transactions += 1
        async with self._ledger.transaction() as transaction:
            yield cast(Transaction, _WatchedTransaction(transaction, self.count_step))
            self.count_step()

    async def accept(
        self,
        organization_ids: Collection[str],
        keys: Collection[tuple[str, str]],
        decide: Callable[[Known], Additions],
        now: datetime,
    ) -> None:
        """The ledger's own, whose step is the decision: it fails after it, before anything is added."""
        self.transactions += 1

        def decide_watched(known: Known) -> Additions:
            additions = decide(known)
            self.count_step()
            return additions

        await self._ledger.accept(organization_ids, keys, decide_watched, now)

    def snapshot(self) -> Any:
        """A snapshot of the ledger."""
        return self._ledger.snapshot()

    def count_step(self) -> None:
        """Count a step that is done; raises `PowerCut` after the one to fail at."""
        self.steps += 1
        if self.steps == self.fail_after:
            raise PowerCut

    @property
    def port(self) -> Ledger:
        """This ledger, as use cases take it."""
        return cast(Ledger, self)


class _WatchedTransaction:
    def __init__(self, transaction: Transaction, count_step: Callable[[], None]) -> None:
        self._transaction = transaction
        self._count_step = count_step

    def __getattr__(self, name: str) -> Any:
        return _WatchedTable(getattr(self._transaction, name), self._count_step)


class _WatchedTable:
    def __init__(self, table: Any, count_step: Callable[[], None]) -> None:
        self._table = table
        self._count_step = count_step

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **named: Any) -> Any:
            result = await getattr(self._table, name)(*arguments, **named)
            self._count_step()
            return result

        return call
