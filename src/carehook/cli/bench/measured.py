"""One figure of a run, and what is wanted of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple


@dataclass(frozen=True, slots=True)
class Measured:
    """A number that a scenario found.

    `ceiling` names the ceiling of which a rate is shown as a share; `cpu` is each role's share of a core meanwhile.
    """

    name: str
    value: float
    unit: str
    ceiling: str | None = None
    cpu: Mapping[str, float] | None = None


class Target(NamedTuple):
    """What is wanted of a figure on the setups it is meant for; none named means all of them."""

    value: float
    is_limit: bool = False
    setups: Collection[str] = ()

    def is_meant_for(self, setup: str) -> bool:
        """Whether it holds on a setup."""
        return not self.setups or setup in self.setups

    def is_met(self, value: float) -> bool:
        """Whether a figure is as wanted."""
        return value <= self.value if self.is_limit else value >= self.value


DELIVERED: Final = "delivered, 2 KB in batches of 500"
DELIVERED_TLS: Final = "delivered, 2 KB in batches of 500, TLS"
ACCEPTED: Final = "accepted while delivering, single events, 64 callers"
LATENCY_P50: Final = "publish to receipt at 500 events/s, p50"
LATENCY_P99: Final = "publish to receipt at 500 events/s, p99"
ALL_RECEIVED: Final = "one event to 1,000 endpoints: all received"
HANGING_RATIO: Final = "healthy endpoints' p99 beside endpoints that hang, times that without"
WORKER_MEMORY: Final = "worker memory, peak"


def name_claim_ratio(largest: int, smallest: int) -> str:
    """The name of the figure that says how much more a claim takes at the largest backlog than at the smallest."""
    return f"claim at {largest:,} due, times that at {smallest:,}"


def name_history_ratio(longest: int, shortest: int) -> str:
    """The name of the figure that says how much more work takes after the longest history than after the shortest."""
    return f"work after {longest:,} deliveries, times that after {shortest:,}"


def name_share(name: str) -> str:
    """The name of the figure that says which share of its ceiling a rate reached."""
    return f"{name}: share of the ceiling"


_SERVER: Final = ("postgresql", "postgresql-apart")

TARGETS: Final[Mapping[str, tuple[Target, ...]]] = {
    DELIVERED: (Target(6_000, setups=_SERVER), Target(4_000, setups=("embedded",))),
    name_share(DELIVERED): (Target(0.25, setups=_SERVER),),
    name_share(DELIVERED_TLS): (Target(0.25, setups=_SERVER),),
    ACCEPTED: (Target(3_000),),
    LATENCY_P50: (Target(5, is_limit=True),),
    LATENCY_P99: (Target(25, is_limit=True),),
    ALL_RECEIVED: (Target(0.5, is_limit=True),),
    HANGING_RATIO: (Target(2, is_limit=True),),
    name_claim_ratio(5_000_000, 10_000): (Target(1.5, is_limit=True),),
    WORKER_MEMORY: (Target(250, is_limit=True),),
}


def find_target(name: str, setup: str) -> Target | None:
    """What is wanted of a figure on a setup, if anything is."""
    return next((target for target in TARGETS.get(name, ()) if target.is_meant_for(setup)), None)
