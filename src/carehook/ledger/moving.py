"""An embedded store's way to a server: every row is copied, counted, and only then is the old store closed for good.

The law: at no moment can both stores be opened, or deliveries would be sent from two places. The copy arrives closed;
then the old store is closed for good; then the copy is opened. What is interrupted before the second has not happened,
and what is interrupted after it is done by moving again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from carehook.ledger.connections.database import Database
from carehook.ledger.occupancy import occupy
from carehook.ledger.port import LedgerUnavailable
from carehook.ledger.sql.schema import HEAD, check_schema, migrate, read_version
from carehook.ledger.sql.tables import installation, metadata
from carehook.refusals import Conflict

MOVED_FACT: Final = "moved"
ARRIVING_FACT: Final = "arriving"
"""What an installation knows of itself once it was moved, and while it is being moved to."""

_ROWS_AT_ONCE: Final = 500


class MoveRefused(Conflict):
    """A move that cannot be made; nothing has changed. The message is a sentence for people."""


async def move_store(source: Database, target: Database, now: datetime) -> Mapping[str, int]:
    """Copy every row of an embedded store to an empty server, and close the old store; the rows of each table.

    Where that was interrupted at its end it is done now, and nothing is copied again. Raises `MoveRefused` where the
    target holds anything, or did not take all; `LedgerUnavailable` where either store cannot be used, or the old one
    is in use, or was moved.
    """
    with occupy(source, alone=True):
        await check_schema(source)
        await _make_tables(target)
        async with source.write() as old:
            moved = await _read_fact(old, MOVED_FACT)
            if moved is None:
                where = target.url.set(drivername="postgresql").render_as_string(hide_password=True)
                moved = f"{where} on {now:%Y-%m-%d %H:%M:%S} UTC".encode()
                counts = await _copy_all(old, target, moved)
                await _close(old, moved)
            elif await _is_arriving(target, moved):
                counts = {}
            else:
                raise refuse_moved(moved)
        await _open(target)
    return counts


def refuse_arriving() -> LedgerUnavailable:
    """What is said of a store that a move has not reached wholly."""
    return LedgerUnavailable(
        "a move to this store was interrupted: run `carehook move` again, or, where the embedded store is at work "
        "again, make the database anew",
        rule="has not wholly arrived",
    )


def refuse_moved(fact: bytes) -> LedgerUnavailable:
    """What is said of a store that was moved."""
    return LedgerUnavailable(
        f"this store was moved to {fact.decode()}: set CAREHOOK_DATABASE_URL to where it is now", rule="was moved"
    )


async def _copy_all(old: AsyncConnection, target: Database, moved: bytes) -> Mapping[str, int]:
    async with target.write(seconds=None) as new:
        await _check_empty(new)
        counts = {table.name: await _copy(table, old, new) for table in metadata.sorted_tables}
        await _check_complete(new, counts)
        await new.execute(installation.insert(), {"name": ARRIVING_FACT, "value": moved})
    return counts


async def _close(old: AsyncConnection, moved: bytes) -> None:
    await old.execute(installation.insert(), {"name": MOVED_FACT, "value": moved})


async def _open(target: Database) -> None:
    async with target.write() as new:
        await new.execute(installation.delete().where(installation.c.name == ARRIVING_FACT))


async def _is_arriving(target: Database, moved: bytes) -> bool:
    async with target.read() as new:
        return await _read_fact(new, ARRIVING_FACT) == moved


async def _read_fact(connection: AsyncConnection, name: str) -> bytes | None:
    query = sa.select(installation.c.value).where(installation.c.name == name)
    return (await connection.execute(query)).scalar_one_or_none()


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
