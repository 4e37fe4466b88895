"""One run: the ceilings, every setup with the scenarios one after another, the ceilings again, and the report.

What cannot be measured is a failure in the report, and keeps nothing else from being measured.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pyreqwest.exceptions import PyreqwestError

from carehook import __version__
from carehook.application import Application
from carehook.bootstrap import StartupError, open_carehook
from carehook.cli.bench.ceiling import REQUESTS, Ceiling, Height
from carehook.cli.bench.certificates import Certificates, make_certificates
from carehook.cli.bench.load import build_client
from carehook.cli.bench.machine import describe_machine
from carehook.cli.bench.measured import WORKER_MEMORY, Measured
from carehook.cli.bench.processes import BenchmarkFailed
from carehook.cli.bench.receiving import Receiver, start_receiver
from carehook.cli.bench.report import CeilingFigure, Failure, Figure, Report, SetupRun, build_figures
from carehook.cli.bench.scenarios import Bench, Scenario, backlog, history
from carehook.cli.bench.setups import Servers, Setup, build_settings, make_store, start_setup
from carehook.cli.bench.stores import DatabaseServer
from carehook.clock import utc_now
from carehook.ledger.port import LedgerUnavailable

Progress = Callable[[str], None]

_StoreScenario = Callable[
    [Application, Sequence[int], Callable[[], Awaitable[None]], Progress], Awaitable[Sequence[Measured]]
]

ALL: Final = "all of them"
"""What is measured over all scenarios of a setup."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and `scale` times how much of it as usual."""

    scenarios: Sequence[Scenario]
    setups: Sequence[Setup]
    servers: Servers
    scale: float = 1.0
    backlogs: Sequence[int] = ()
    histories: Sequence[int] = ()

    def choose(self, setup: Setup) -> list[Scenario]:
        """The scenarios for a setup; those that are not brief are left out where another one stands for it."""
        return [scenario for scenario in self.scenarios if scenario.is_brief or not setup.is_brief]

    @property
    def ceilings(self) -> list[Ceiling]:
        """The ceilings that shares are taken of, and the one of the usual bodies."""
        return sorted({Ceiling(), *(each for scenario in self.scenarios for each in scenario.ceilings)})


async def run_benchmark(plan: Plan, tell: Progress) -> Report:
    """Measure all that is planned; `tell` is told what is being measured. Raises `BenchmarkFailed`."""
    measured_at, begun = utc_now(), time.monotonic()
    async with AsyncExitStack() as started:
        folder = Path(started.enter_context(tempfile.TemporaryDirectory(prefix="carehook-bench-")))
        machine = describe_machine(folder)
        setups = [await _describe_setup(setup, plan.servers) for setup in plan.setups]
        certificates = make_certificates(folder, measured_at)
        client = build_client(certificates.authority)
        started.push_async_callback(client.close)
        receiver, neighbour = [
            await started.enter_async_context(start_receiver(client, certificates, folder)) for _ in range(2)
        ]
        tell("the ceiling: the HTTP client alone")
        before = await _measure_ceilings(plan.ceilings, receiver, plan.scale)
        run = _Run(plan, folder, certificates, receiver, neighbour, tell)
        for setup in plan.setups:
            await run.measure(setup)
        tell("the ceiling again")
        after = await _measure_ceilings(plan.ceilings, receiver, plan.scale)
    ceilings = [_build_ceiling(each, before[each], after[each]) for each in plan.ceilings]
    figures = run.build_figures(ceilings)
    return Report(
        carehook=__version__,
        measured_at=measured_at,
        seconds=round(time.monotonic() - begun, 1),
        scale=plan.scale,
        workers=plan.servers.workers,
        machine=machine,
        setups=[setup for setup in setups if any(figure.setup == setup.name for figure in figures)],
        ceilings=ceilings,
        figures=figures,
        failures=run.failures,
    )


@dataclass(slots=True)
class _Run:
    """The setups' part of a run, and what was found until now: shares need the ceiling, which is known at the end."""

    plan: Plan
    folder: Path
    certificates: Certificates
    receiver: Receiver
    neighbour: Receiver
    tell: Progress
    measured: list[tuple[str, str, Sequence[Measured]]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    async def measure(self, setup: Setup) -> None:
        """Measure a setup."""
        if self.plan.choose(setup):
            with self._noting_failure(ALL, setup):
                await self._measure_scenarios(setup)
        if setup.is_apart:
            # The store is measured by itself, and is the same one.
            return
        if self.plan.backlogs:
            await self._measure_store(setup, backlog.NAME, backlog.measure_backlogs, self.plan.backlogs)
        if self.plan.histories:
            await self._measure_store(setup, history.NAME, history.measure_histories, self.plan.histories)

    def build_figures(self, ceilings: Sequence[CeilingFigure]) -> list[Figure]:
        """All figures, those of one setup after those of the other."""
        return [
            figure
            for scenario, setup, measured in self.measured
            for figure in build_figures(scenario, setup, measured, ceilings, self.plan.scale)
        ]

    async def _measure_scenarios(self, setup: Setup) -> None:
        servers, client = self.plan.servers, self.receiver.client
        async with start_setup(setup, servers, client, self.certificates, self.folder / setup.name) as carehook:
            bench = Bench(carehook, self.receiver, self.neighbour, self.plan.scale)
            for scenario in self.plan.choose(setup):
                self.tell(f"{setup.title}: {scenario.description}")
                with self._noting_failure(scenario.name, setup):
                    self.measured.append((scenario.name, setup.name, await scenario.run(bench)))
            memory = Measured(WORKER_MEMORY, carehook.read_peak_memory(), "MB")
            self.measured.append((ALL, setup.name, [memory]))

    async def _measure_store(self, setup: Setup, name: str, measure: _StoreScenario, sizes: Sequence[int]) -> None:
        servers = self.plan.servers
        with self._noting_failure(name, setup):
            async with make_store(
                setup, servers, self.certificates, self.folder / f"{setup.name}-{name}"
            ) as environment:
                settings = build_settings(environment)

                async def settle() -> None:
                    if servers.database is not None and settings.database_url is not None:
                        await DatabaseServer(servers.database).settle(settings.database_url)

                async with open_carehook(settings, create=True) as carehook:
                    measured = await measure(carehook, sizes, settle, lambda what: self.tell(f"{setup.title}: {what}"))
            self.measured.append((name, setup.name, measured))

    @contextmanager
    def _noting_failure(self, scenario: str, setup: Setup) -> Iterator[None]:
        try:
            yield
        except (BenchmarkFailed, LedgerUnavailable, PyreqwestError, StartupError) as error:
            self.failures.append(Failure(scenario=scenario, setup=setup.name, reason=str(error)))


async def _measure_ceilings(ceilings: Collection[Ceiling], receiver: Receiver, scale: float) -> dict[Ceiling, Height]:
    requests = max(200, round(REQUESTS * scale))
    return {ceiling: await ceiling.measure(receiver, requests) for ceiling in ceilings}


def _build_ceiling(ceiling: Ceiling, before: Height, after: Height) -> CeilingFigure:
    cpu = (before.cpu + after.cpu) / 2
    return CeilingFigure(name=ceiling.name, before=before.rate, after=after.rate, cpu_us=cpu * 1e6)


async def _describe_setup(setup: Setup, servers: Servers) -> SetupRun:
    store = "SQLite, synchronous=FULL"
    if setup.needs_database and servers.database is not None:
        store = await DatabaseServer(servers.database).describe()
    return SetupRun(name=setup.name, title=setup.title, store=store)
