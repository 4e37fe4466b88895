"""The result of a run, as it is kept: the machine, the ceilings, and every figure beside what is wanted of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from pydantic import BaseModel

from carehook.cli.bench.measured import Measured, find_target, name_share


class Machine(BaseModel):
    """The machine that a run was made on."""

    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str
    load_average: float
    """How busy it was as the run began: processes that wanted a core, over the last minute."""
    fsync_ms: float
    """What it takes to make a small write durable, the median."""

    @property
    def name(self) -> str:
        """What a person calls it: "AMD EPYC, 2 cores, 24 GiB"."""
        return f"{self.processor}, {self.cores} cores, {self.memory_gib:.0f} GiB"


class CeilingFigure(BaseModel):
    """Requests per second of the HTTP client alone, before and after everything else.

    `cpu_us` is the processor time that it spent on each, in microseconds.
    """

    name: str
    before: float
    after: float
    cpu_us: float

    @property
    def value(self) -> float:
        """What shares are taken of: the mean."""
        return (self.before + self.after) / 2


class SetupRun(BaseModel):
    """A setup that was measured."""

    name: str
    title: str
    store: str


class Figure(BaseModel):
    """What was measured in a setup, and what is wanted of it; `is_limit`: at most rather than at least.

    `cpu` is the share of a core that each role took meanwhile.
    """

    scenario: str
    setup: str
    name: str
    value: float
    unit: str
    target: float | None = None
    is_limit: bool = False
    is_met: bool | None = None
    cpu: dict[str, float] | None = None


class Failure(BaseModel):
    """A scenario that could not be measured."""

    scenario: str
    setup: str
    reason: str


class Report(BaseModel):
    """A run."""

    carehook: str
    measured_at: datetime
    seconds: float
    scale: float
    workers: int
    machine: Machine
    setups: list[SetupRun]
    ceilings: list[CeilingFigure]
    figures: list[Figure]
    failures: list[Failure] = []


SMALLEST_JUDGED: Final = 0.1
"""The scale from which on figures are judged. Below it, starting up is most of what is measured."""


def build_figures(
    scenario: str, setup: str, measured: Iterable[Measured], ceilings: Sequence[CeilingFigure], scale: float
) -> list[Figure]:
    """The figures of a scenario: what it measured, each rate followed by its share of its ceiling."""
    figures = []
    for each in measured:
        figures.append(_judge(scenario, setup, each, scale))
        ceiling = next((ceiling for ceiling in ceilings if ceiling.name == each.ceiling), None)
        if ceiling is not None:
            share = Measured(name_share(each.name), each.value / ceiling.value, "")
            figures.append(_judge(scenario, setup, share, scale))
    return figures


def _judge(scenario: str, setup: str, measured: Measured, scale: float) -> Figure:
    target = find_target(measured.name, setup) if scale >= SMALLEST_JUDGED else None
    return Figure(
        scenario=scenario,
        setup=setup,
        name=measured.name,
        value=measured.value,
        unit=measured.unit,
        target=target.value if target else None,
        is_limit=bool(target and target.is_limit),
        is_met=target.is_met(measured.value) if target else None,
        cpu=dict(measured.cpu) if measured.cpu else None,
    )


def format_value(value: float) -> str:
    """A figure as people read it."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def format_target(figure: Figure) -> str:
    """What is wanted of a figure; nothing where nothing is."""
    if figure.target is None:
        return ""
    return f"{'≤' if figure.is_limit else '≥'} {figure.target:,g}"
