"""What there is on a server, to see that something left it as it was."""

import asyncpg
import nats

from tests.servers.postgres import PostgresServer


async def list_databases(server: PostgresServer) -> set[str]:
    """The names of all databases."""
    connection = await asyncpg.connect(server.plain_url())
    try:
        return {row["datname"] for row in await connection.fetch("SELECT datname FROM pg_database")}
    finally:
        await connection.close()


async def list_streams(url: str) -> set[str]:
    """The names of all JetStream streams."""
    connection = await nats.connect(url)
    try:
        return {stream.config.name or "" for stream in await connection.jetstream().streams_info()}
    finally:
        await connection.close()
