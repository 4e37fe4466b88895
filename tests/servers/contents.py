"""What there is on a server, to see that something left it as it was."""

from tests.servers.clients import connect_to_nats, connect_to_postgres
from tests.servers.postgres import PostgresServer


async def list_databases(server: PostgresServer) -> set[str]:
    """The names of all databases."""
    async with connect_to_postgres(server.plain_url()) as connection:
        return {row["datname"] for row in await connection.fetch("SELECT datname FROM pg_database")}


async def list_streams(url: str) -> set[str]:
    """The names of all JetStream streams."""
    async with connect_to_nats(url) as client:
        return {stream.config.name or "" for stream in await client.jetstream().streams_info()}
