"""What every scenario is given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from carehook.cli.bench.carehook import Carehook
from carehook.cli.bench.ceiling import Ceiling
from carehook.cli.bench.measured import Measured
from carehook.cli.bench.receiving import Receiver
from carehook.cli.bench.report import SMALLEST_JUDGED
from carehook.cli.bench.usage import RECEIVER, CpuMeter


@dataclass(frozen=True, slots=True)
class Bench:
    """A Carehook under measurement, two bare receivers, and how much is to be done.

    `receiver` is measured; `neighbour` is where the endpoints are that are in its way.
    """

    carehook: Carehook
    receiver: Receiver
    neighbour: Receiver
    scale: float

    def count(self, usual: int, least: int) -> int:
        """How many of what is usually `usual`: as the run's scale says, at least `least`."""
        return max(least, round(usual * self.scale))

    def choose(self, usual: int, tiny: int) -> int:
        """`usual`, which makes the figure what its name says, or `tiny` in a run that judges nothing."""
        return usual if self.scale >= SMALLEST_JUDGED else tiny

    def meter(self) -> CpuMeter:
        """Measure from now on what each process takes of the processors."""
        return CpuMeter({**self.carehook.processes, RECEIVER: self.receiver.pid})


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing that is measured, under the name that selects it. `is_brief`: it runs in setups of lesser interest."""

    name: str
    description: str
    run: Callable[[Bench], Awaitable[Sequence[Measured]]]
    ceilings: Sequence[Ceiling] = ()
    is_brief: bool = False
