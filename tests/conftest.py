"""What tests of every kind may ask for: real servers, and ports for their own."""

from collections.abc import Iterator

import pytest

from tests.servers.nats import NatsServers
from tests.servers.ports import find_free_port
from tests.servers.postgres import PostgresServer


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep `serial` tests together: one worker runs them one after another."""
    if item.get_closest_marker("serial"):
        item.add_marker(pytest.mark.xdist_group("serial"))


@pytest.fixture
def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on now."""
    return find_free_port()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL for all tests of this process; a test that stops or kills one makes its own."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_database(postgres_server: PostgresServer) -> Iterator[str]:
    """The name of an empty database for this test alone."""
    name = postgres_server.create_database()
    yield name
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServers]:
    """One NATS server for all tests of this process; a test that stops or kills one makes its own."""
    with NatsServers() as server:
        yield server
