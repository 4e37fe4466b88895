"""What the API tells while its store is away: when to repeat, and nothing of where the store is. That is in the log."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from pydantic import SecretStr
from sqlalchemy.engine import make_url
from structlog.testing import capture_logs

from carehook.bootstrap import migrate_store
from carehook.config import Settings
from tests.e2e.conftest import REPORT, Client, RunningApi
from tests.servers.postgres import PostgresServer


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module")
def database_url(server: PostgresServer) -> str:
    return server.plain_url(server.create_database())


@pytest.fixture(scope="module")
def api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    """An API on a PostgreSQL of its own; nothing else uses the store."""
    settings = Settings(home=tmp_path_factory.mktemp("carehook"), database_url=SecretStr(database_url))
    asyncio.run(migrate_store(settings))
    with RunningApi(settings, is_working=False) as running:
        yield running


@pytest.fixture
def away(api: RunningApi, server: PostgresServer, organization: str, publisher: Client) -> Iterator[str]:
    """The path that publishes for an organization, while the store is stopped."""
    publisher.publish(organization)
    server.stop()
    yield f"/v1/organizations/{organization}/events"
    server.start()


def test_no_answer_tells_where_the_store_is_and_the_log_does(
    api: RunningApi, anonymous: Client, operator: Client, away: str, database_url: str
) -> None:
    guesser = Client(anonymous.url, "carehook_guess", anonymous.session)
    with capture_logs() as logs:
        answers = [
            anonymous.call("GET", "/readyz"),
            guesser.call("GET", "/v1/organizations"),
            operator.call("GET", away),
            operator.call("POST", away, REPORT),
        ]
    assert [answer.status_code for answer in answers] == [503] * len(answers)
    url = make_url(database_url)
    parts = [str(part) for part in (url.host, url.port, url.username, url.password, url.database)]
    told = "".join(answer.text + repr(answer.headers) for answer in answers)
    assert [part for part in [*parts, "asyncpg", "Errno"] if part in told] == []
    reasons = [line["reason"] for line in logs if line["event"] in ("not_ready", "store_unavailable")]
    assert len(reasons) == len(answers)
    assert all(f"{url.host}:{url.port}/{url.database} does not answer: " in reason for reason in reasons)
    assert str(url.password) not in repr(logs)


@pytest.mark.usefixtures("away")
def test_metrics_are_shown_all_the_same(anonymous: Client) -> None:
    response = anonymous.call("GET", "/metrics")
    assert response.status_code == 200
    lines = response.text.splitlines()
    assert "carehook_store_up 0.0" in lines
    assert any(line.startswith("carehook_events_accepted_total{") for line in lines)
    assert "carehook_backlog" not in response.text


def test_it_goes_on_once_the_store_is_back(anonymous: Client, publisher: Client, organization: str) -> None:
    assert "carehook_store_up 1.0" in anonymous.call("GET", "/metrics").text
    assert anonymous.take("GET", "/readyz") == {"status": "ready"}
    assert publisher.publish(organization)["id"]
