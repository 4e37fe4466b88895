"""One run: the ceilings, every setup with the scenarios one after another, the ceilings again, and the report."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from carehook import __version__
from carehook.bootstrap import open_carehook
from carehook.cli.bench.ceiling import REQUESTS, Ceiling
from carehook.cli.bench.certificates import Certificates, make_certificates
from carehook.cli.bench.load import build_client
from carehook.cli.bench.machine import describe_machine
from carehook.cli.bench.measured import WORKER_MEMORY, Measured
from carehook.cli.bench.processes import BenchmarkFailed
from carehook.cli.bench.receiving import Receiver, start_receiver
from carehook.cli.bench.report import CeilingFigure, Failure, Figure, Report, SetupRun, build_figures
from carehook.cli.bench.scenarios import Bench, Scenario, backlog
from carehook.cli.bench.setups import Servers, Setup, build_settings, make_store, start_setup
from carehook.cli.bench.stores import DatabaseServer
from carehook.clock import utc_now

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and `scale` times how much of it as usual."""

    scenarios: Sequence[Scenario]
    setups: Sequence[Setup]
    servers: Servers
    scale: float = 1.0
    backlogs: Sequence[int] = ()

    def choose(self, setup: Setup) -> list[Scenario]:
        """The scenarios for a setup; those that are not brief are left out where another one stands for it."""
        return [scenario for scenario in self.scenarios if scenario.is_brief or not setup.is_brief]


@dataclass(slots=True)
class Findings:
    """What was measured until now, before the ceilings are known."""

    measured: list[tuple[str, str, Sequence[Measured]]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


async def run_benchmark(plan: Plan, tell: Progress) -> Report:
    """Measure all that is planned; `tell` is told what is being measured. Raises `BenchmarkFailed`."""
    measured_at, begun = utc_now(), time.monotonic()
    async with AsyncExitStack() as started:
        folder = Path(started.enter_context(tempfile.TemporaryDirectory(prefix="carehook-bench-")))
        machine = describe_machine(folder)
        certificates = make_certificates(folder, measured_at)
        client = build_client(certificates.authority)
        started.push_async_callback(client.close)
        receiver = await started.enter_async_context(start_receiver(client, certificates, folder))
        neighbour = await started.enter_async_context(start_receiver(client, certificates, folder))
        ceilings = sorted({Ceiling(), *(each for scenario in plan.scenarios for each in scenario.ceilings)})
        tell("the ceiling: the HTTP client alone")
        before = await _measure_ceilings(ceilings, receiver, plan.scale)
        setups = [await _describe_setup(setup, plan.servers) for setup in plan.setups]
        findings = Findings()
        for setup in plan.setups:
            if plan.scenarios:
                await _run_setup(plan, setup, (receiver, neighbour), certificates, folder / setup.name, findings, tell)
            if plan.backlogs and not setup.is_apart:
                await _run_backlogs(plan, setup, certificates, folder / f"{setup.name}-backlog", findings, tell)
        tell("the ceiling again")
        after = await _measure_ceilings(ceilings, receiver, plan.scale)
    found = [CeilingFigure(name=ceiling.name, before=before[ceiling], after=after[ceiling]) for ceiling in ceilings]
    return Report(
        carehook=__version__,
        measured_at=measured_at,
        seconds=round(time.monotonic() - begun, 1),
        scale=plan.scale,
        workers=plan.servers.workers,
        machine=machine,
        setups=[setup for setup in setups if any(name == setup.name for _, name, _ in findings.measured)],
        ceilings=found,
        figures=_build_figures(findings, found, plan.scale),
        failures=findings.failures,
    )


async def _run_setup(
    plan: Plan,
    setup: Setup,
    receivers: tuple[Receiver, Receiver],
    certificates: Certificates,
    folder: Path,
    findings: Findings,
    tell: Progress,
) -> None:
    receiver, neighbour = receivers
    async with start_setup(setup, plan.servers, receiver.client, certificates, folder) as carehook:
        bench = Bench(carehook, receiver, neighbour, plan.scale)
        for scenario in plan.choose(setup):
            tell(f"{setup.title}: {scenario.description}")
            try:
                findings.measured.append((scenario.name, setup.name, await scenario.run(bench)))
            except BenchmarkFailed as error:
                findings.failures.append(Failure(scenario=scenario.name, setup=setup.name, reason=str(error)))
        memory = Measured(WORKER_MEMORY, carehook.read_peak_memory(), "MB")
        findings.measured.append(("all of them", setup.name, [memory]))


async def _run_backlogs(
    plan: Plan, setup: Setup, certificates: Certificates, folder: Path, findings: Findings, tell: Progress
) -> None:
    async with make_store(setup, plan.servers, certificates, folder) as environment:
        settings = build_settings(environment)

        async def settle() -> None:
            if plan.servers.database is not None and settings.database_url is not None:
                await DatabaseServer(plan.servers.database).settle(settings.database_url)

        async with open_carehook(settings, create=True) as carehook:
            measured = await backlog.measure_backlogs(
                carehook, plan.backlogs, settle, lambda what: tell(f"{setup.title}: {what}")
            )
    findings.measured.append((backlog.NAME, setup.name, measured))


async def _measure_ceilings(ceilings: Collection[Ceiling], receiver: Receiver, scale: float) -> dict[Ceiling, float]:
    requests = max(200, round(REQUESTS * scale))
    return {ceiling: await ceiling.measure(receiver, requests) for ceiling in ceilings}


async def _describe_setup(setup: Setup, servers: Servers) -> SetupRun:
    store = "SQLite, synchronous=FULL"
    if setup.needs_database and servers.database is not None:
        store = await DatabaseServer(servers.database).describe()
    return SetupRun(name=setup.name, title=setup.title, store=store)


def _build_figures(findings: Findings, ceilings: Sequence[CeilingFigure], scale: float) -> list[Figure]:
    return [
        figure
        for scenario, setup, measured in findings.measured
        for figure in build_figures(scenario, setup, measured, ceilings, scale)
    ]
