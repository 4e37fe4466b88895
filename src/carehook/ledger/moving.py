"""An embedded store's way to a server: every row is copied, counted, and only then is the old store closed for good.

The laws: both stores change in one transaction each, the new one first, so that a move that is interrupted has not
happened; and a store that was moved is never opened again, or its deliveries would be sent from two places.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from carehook.ledger.database import Database
from carehook.ledger.occupancy import occupy
from carehook.ledger.port import LedgerUnavailable
from carehook.ledger.schema import HEAD, check_schema, migrate, read_version
from carehook.ledger.tables import installation, metadata
from carehook.refusals import Conflict

MOVED_FACT: Final = "moved"

_ROWS_AT_ONCE: Final = 500


class MoveRefused(Conflict):
    """A move that cannot be made; nothing has changed. The message is a sentence for people."""


async def move_store(source: Database, target: Database, now: datetime) -> Mapping[str, int]:
    """Copy every row of an embedded store to an empty server, and close the old store; the rows of each table.

    Raises `MoveRefused` where the target holds
    anything, or did not take all; `LedgerUnavailable` where either store cannot be used, or the old one is in use.
    """
    with occupy(source, alone=True):
        await check_schema(source)
        await _make_tables(target)
        async with source.write() as old:
            await _check_not_moved(old)
            async with target.write() as new:
                await _check_empty(new)
                counts = {table.name: await _copy(table, old, new) for table in metadata.sorted_tables}
                await _check_complete(new, counts)
            where = target.url.set(drivername="postgresql").render_as_string(hide_password=True)
            fact = {"name": MOVED_FACT, "value": f"{where} on {now:%Y-%m-%d %H:%M} UTC".encode()}
            await old.execute(installation.insert(), fact)
    return counts


def refuse_moved(fact: bytes) -> LedgerUnavailable:
    """What is said of a store that was moved."""
    return LedgerUnavailable(
        f"this store was moved to {fact.decode()}: set CAREHOOK_DATABASE_URL to where it is now", rule="was moved"
    )


async def _copy(table: sa.Table, old: AsyncConnection, new: AsyncConnection) -> int:
    copied = 0
    async for rows in _read(table, old):
        await new.execute(table.insert(), [dict(row) for row in rows])
        copied += len(rows)
    return copied


async def _read(table: sa.Table, old: AsyncConnection) -> AsyncIterator[Sequence[sa.RowMapping]]:
    """All rows by their primary key, some at a time."""
    keys = list(table.primary_key.columns)
    last: tuple[Any, ...] | None = None
    while True:
        query = sa.select(table).order_by(*keys).limit(_ROWS_AT_ONCE)
        if last is not None:
            query = query.where(sa.tuple_(*keys) > sa.tuple_(*last))
        rows = (await old.execute(query)).mappings().all()
        if not rows:
            return
        yield rows
        last = tuple(rows[-1][key.name] for key in keys)


async def _make_tables(target: Database) -> None:
    """Make the tables where there are none. Another version's are those of a store that may be at work."""
    version = await read_version(target)
    if version is None:
        await migrate(target)
    elif version != HEAD:
        raise MoveRefused(
            f"The target already holds the tables of another version ({version}). Move to an empty database"
        )


async def _check_not_moved(old: AsyncConnection) -> None:
    query = sa.select(installation.c.value).where(installation.c.name == MOVED_FACT)
    if (moved := (await old.execute(query)).scalar_one_or_none()) is not None:
        raise refuse_moved(moved)


async def _check_empty(new: AsyncConnection) -> None:
    for table in metadata.sorted_tables:
        if (await new.execute(sa.select(sa.literal_column("1")).select_from(table).limit(1))).first():
            raise MoveRefused(
                f"The target already holds {table.name}. Move to an empty database, or nobody could say whose they are"
            )


async def _check_complete(new: AsyncConnection, counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        query = sa.select(sa.func.count()).select_from(metadata.tables[name])
        found = (await new.execute(query)).scalar_one()
        if found != count:
            raise MoveRefused(f"Of {count} rows of {name} the target has {found}. Nothing was moved")
