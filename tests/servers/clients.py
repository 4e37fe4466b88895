"""Connections to the servers that tests rely on, closed whatever becomes of the test: what is left open by one that
failed would fail another, wherever Python's garbage collector finds it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import nats
from nats.aio.client import Client


@asynccontextmanager
async def connect_to_postgres(url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection to a database, by its plain URL."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def connect_to_nats(url: str) -> AsyncIterator[Client]:
    """A connection to one of the servers of a `CAREHOOK_QUEUE_URL`, not made again when it is lost."""
    client = await nats.connect(url.split(","), allow_reconnect=False)
    try:
        yield client
    finally:
        await client.close()


async def execute(url: str, *statements: str) -> Any:
    """Run statements on a connection of their own; the last one's first value."""
    async with connect_to_postgres(url) as connection:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return await connection.fetchval(statements[-1])
