"""What `carehook bench` was asked for, and the run of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import typer
import uvloop

from carehook.cli.bench.keeping import keep_report
from carehook.cli.bench.run import Plan, run_benchmark
from carehook.cli.bench.scenarios import SCENARIOS, backlog, history
from carehook.cli.bench.setups import SETUPS, Servers
from carehook.cli.bench.table import print_report
from carehook.cli.failures import CommandFailed
from carehook.cli.output import print_json, say
from carehook.config import load_settings

Choice = TypeVar("Choice")

_DESCRIPTIONS: Final = {
    **{each.name: each.description for each in SCENARIOS},
    backlog.NAME: backlog.DESCRIPTION,
    history.NAME: history.DESCRIPTION,
}


@dataclass(frozen=True, slots=True)
class Request:
    """The options of the command."""

    scale: float = 1.0
    only: Sequence[str] | None = None
    setups: Sequence[str] | None = None
    database_url: str | None = None
    queue_url: str | None = None
    workers: int = 1
    largest_backlog: int = backlog.LARGEST
    keep: Path | None = None
    as_json: bool = False


def list_choices() -> None:
    """Print the scenarios and the setups by their names."""
    for name, description in _DESCRIPTIONS.items():
        print(f"{name}\t{description}")
    for setup in SETUPS:
        print(f"{setup.name}\t{setup.title}")


def measure(request: Request) -> None:
    """Measure, print and keep. Raises `CommandFailed` where something could not be measured."""
    plan = build_plan(request)
    report = uvloop.run(run_benchmark(plan, lambda what: say(f"Measuring {what} …")))
    if request.as_json:
        print_json(report)
    else:
        print_report(report)
    if request.keep is not None:
        say(f"Kept as {keep_report(report, request.keep)}, with a plot beside it.")
    if report.failures:
        raise CommandFailed(f"{len(report.failures)} could not be measured; the report says why")


def build_plan(request: Request) -> Plan:
    """What is asked for. Raises `BadParameter` for a scenario or a setup that there is not, or cannot be run."""
    servers = _find_servers(request)
    names = _choose(request.only, {name: name for name in _DESCRIPTIONS}, "--only")
    backlogs = backlog.choose_sizes(request.largest_backlog, request.scale) if backlog.NAME in names else ()
    histories = history.choose_sizes(request.scale) if history.NAME in names else ()
    setups = _choose(request.setups, {each.name: each for each in SETUPS}, "--on")
    runnable = [setup for setup in setups if servers.can_run(setup)]
    if request.setups and len(runnable) < len(setups):
        raise typer.BadParameter("needs --database-url, and jetstream --queue-url as well.", param_hint="--on")
    scenarios = [each for each in SCENARIOS if each.name in names]
    return Plan(scenarios, runnable, servers, request.scale, backlogs, histories)


def _find_servers(request: Request) -> Servers:
    given: dict[str, Any] = {}
    if request.database_url is not None:
        given["database_url"] = request.database_url
    if request.queue_url is not None:
        given["queue_url"] = request.queue_url
    settings = load_settings(**given)
    database = settings.database_url
    if request.database_url is None and database is not None and database.get_secret_value().startswith("sqlite"):
        # A file of somebody's is no server to measure on; the embedded store is measured in a folder of its own.
        database = None
    return Servers(database, settings.queue_url, request.workers)


def _choose(names: Sequence[str] | None, choices: Mapping[str, Choice], option: str) -> list[Choice]:
    if not names:
        return list(choices.values())
    if unknown := [name for name in names if name not in choices]:
        raise typer.BadParameter(f"{unknown[0]} is none of {', '.join(choices)}.", param_hint=option)
    return [choice for name, choice in choices.items() if name in names]
