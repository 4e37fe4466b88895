"""The assembled Carehook: every use case, ready. `bootstrap` makes it; API, console and command line use it."""

from __future__ import annotations

from dataclasses import dataclass

from carehook.access.tokens import Tokens
from carehook.clock import Clock
from carehook.config import Settings
from carehook.directory.endpoints import Endpoints
from carehook.directory.organizations import Organizations
from carehook.dispatch.interventions import Interventions
from carehook.dispatch.worker import Worker
from carehook.insights import Insights
from carehook.intake.accept import Intake
from carehook.intake.care import CareRecords
from carehook.intake.examples import Examples
from carehook.ledger.port import Ledger, Queue
from carehook.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Application:
    """The use cases of one Carehook on one store. `ledger` and `queue` are here for probes and the benchmark."""

    settings: Settings
    clock: Clock
    ledger: Ledger
    queue: Queue
    metrics: Metrics
    organizations: Organizations
    endpoints: Endpoints
    intake: Intake
    care: CareRecords
    examples: Examples
    interventions: Interventions
    insights: Insights
    tokens: Tokens
    worker: Worker
