"""What is measured, in the order in which it is: what leaves the most behind comes last."""

from __future__ import annotations

from typing import Final

from carehook.cli.bench.scenarios import accepting, backlog, delivering, hanging, history, latency
from carehook.cli.bench.scenarios.bench import Bench, Scenario

SCENARIOS: Final = (*delivering.SCENARIOS, *accepting.SCENARIOS, *latency.SCENARIOS, *hanging.SCENARIOS)

__all__ = ["SCENARIOS", "Bench", "Scenario", "backlog", "history"]
