"""`carehook bench` runs to its end on real servers; how fast it is on this machine is nobody's test."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from carehook.cli.bench.report import Report
from tests.servers.contents import list_databases, list_streams
from tests.servers.installation import Installation
from tests.servers.nats import NatsServers
from tests.servers.postgres import PostgresServer

TINY = ("--scale", "0.002")


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path)


def test_a_tiny_benchmark_measures_every_scenario(installation: Installation) -> None:
    listed = [line.split("\t")[0] for line in installation.run("bench", "--list").stdout.splitlines()]

    report = Report.model_validate(installation.read("bench", *TINY))

    assert report.failures == []
    assert [setup.name for setup in report.setups] == ["embedded"]
    measured = {figure.scenario for figure in report.figures} - {"all of them"}
    assert measured == set(listed) - {"embedded", "postgresql", "postgresql-apart", "jetstream"}
    assert [figure.name for figure in report.figures if not figure.value > 0] == []
    assert [figure.name for figure in report.figures if figure.target is not None] == []
    assert [ceiling.name for ceiling in report.ceilings] == ["1 KB", "2 KB", "2 KB, TLS", "20 KB"]
    assert all(ceiling.before > 0 and ceiling.after > 0 and ceiling.cpu_us > 0 for ceiling in report.ceilings)


async def test_servers_are_measured_apart_and_left_as_they_were(
    installation: Installation, postgres_server: PostgresServer, nats_server: NatsServers, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    before = await list_databases(postgres_server), await list_streams(nats_server.url)

    printed = installation.run(
        *("bench", *TINY, "--only", "deliver", "--on", "jetstream", "--keep", str(kept)),
        CAREHOOK_DATABASE_URL=postgres_server.plain_url(),
        CAREHOOK_QUEUE_URL=nats_server.url,
    ).stdout

    assert (await list_databases(postgres_server), await list_streams(nats_server.url)) == before
    (result,) = kept.glob("*.json")
    report = Report.model_validate_json(result.read_text())
    assert [setup.name for setup in report.setups] == ["jetstream"]
    assert "fsync=off" in report.setups[0].store
    delivered, share, memory = report.figures
    assert set(delivered.cpu or ()) == {"api", "worker", "postgresql", "receiver", "load", "others"}
    assert share.value == pytest.approx(delivered.value / report.ceilings[0].value)
    assert memory.value > 20
    header = next(line for line in printed.splitlines() if line.startswith("figure\t"))
    assert header.split("\t")[1:] == [setup.title for setup in report.setups]
    texts = list(ElementTree.fromstring(result.with_suffix(".svg").read_text()).itertext())
    assert report.setups[0].title in texts


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "delivery"], "delivery is none of deliver, deliver-tls"),
        (["--on", "sqlite"], "sqlite is none of embedded, postgresql"),
        (["--on", "postgresql"], "needs --database-url"),
        (["--on", "jetstream", "--database-url", "postgresql://user@host/name"], "jetstream --queue-url"),
    ],
)
def test_what_cannot_be_chosen_is_refused(installation: Installation, arguments: list[str], said: str) -> None:
    refused = installation.run("bench", *arguments, code=2).stderr

    assert said in " ".join(refused.replace("│", " ").split())


def test_a_server_that_is_away_is_said_in_a_sentence(installation: Installation, free_port: int) -> None:
    url = f"postgresql://user:very-secret@127.0.0.1:{free_port}/name"

    done = installation.run("bench", *TINY, "--only", "deliver", "--database-url", url, code=1)

    assert "The PostgreSQL server cannot be used" in done.stderr
    assert "very-secret" not in done.stdout + done.stderr


def test_what_cannot_be_measured_keeps_nothing_else_from_it(
    installation: Installation, postgres_server: PostgresServer, free_port: int
) -> None:
    done = installation.run(
        *("bench", *TINY, "--only", "accept-batches", "--on", "embedded", "--on", "jetstream", "--json"),
        code=1,
        CAREHOOK_DATABASE_URL=postgres_server.plain_url(),
        CAREHOOK_QUEUE_URL=f"nats://127.0.0.1:{free_port}",
    )

    report = Report.model_validate_json(done.stdout)
    assert {figure.setup for figure in report.figures} == {"embedded"}
    (failure,) = report.failures
    assert failure.setup == "jetstream"
    assert "CAREHOOK_QUEUE_URL" in failure.reason
    assert "1 could not be measured" in done.stderr


def test_the_scenarios_are_listed_with_what_they_do(installation: Installation) -> None:
    lines = installation.run("bench", "--list").stdout.splitlines()

    assert "deliver\t2 KB bodies in batches of 500 to one endpoint" in lines
    assert json.dumps(lines).count("JetStream") == 1
