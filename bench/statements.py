"""What accept, claim and finish cost on PostgreSQL, each alone: µs of processor time a delivery, of client and server.

    .venv/bin/python bench/statements.py          # batches of 250
    .venv/bin/python bench/statements.py 500
    PYTHONPATH=…/src .venv/bin/python bench/statements.py          # the same with another checkout's code

Nothing is sent and nothing overlaps, so that a change of one statement shows, which is lost in the noise of `carehook
bench`. Shown are the median and, in brackets, the least of five passes.
"""

import asyncio
import gc
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import timedelta
from pathlib import Path

import uvloop
from pydantic import SecretStr

from carehook.bootstrap import build_ledger, build_queue
from carehook.cli.bench.stores import DatabaseServer
from carehook.cli.bench.usage import find_family
from carehook.clock import utc_now
from carehook.events import CATALOGUE
from carehook.ids import ATTEMPT, ENDPOINT, ORGANIZATION, new_id
from carehook.intake.accept import Intake
from carehook.ledger.connections.database import Database, parse_database_url
from carehook.ledger.port import Ledger, Queue
from carehook.ledger.records import (
    Attempt,
    AttemptOutcome,
    ClaimedDelivery,
    Endpoint,
    FinishedAttempt,
    Organization,
)
from carehook.ledger.sql.schema import migrate
from carehook.ledger.states import EndpointStatus, Transition
from carehook.metrics import Metrics

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.servers import DURABLE  # noqa: E402 (no package that is installed, as the tests are none)
from tests.servers.postgres import PostgresServer  # noqa: E402

PASSES = 5
DELIVERIES = 10_000
EVENT = CATALOGUE["patient_consultation_finished"]

Operation = Callable[[], Awaitable[object]]


class Meter:
    """Seconds of processor time that client and server take, to the nanosecond (proc(5), `schedstat`)."""

    def __init__(self, server: Collection[int]) -> None:
        self._server = server
        self.measured: dict[str, list[tuple[float, float]]] = {}

    async def measure(self, name: str, operation: Operation) -> None:
        """Run an operation over all deliveries."""
        client, server = time.process_time(), self._read_server()
        await operation()
        taken = time.process_time() - client, self._read_server() - server
        self.measured.setdefault(name, []).append(taken)

    def describe(self) -> str:
        """A line for each operation."""
        return "\n".join(f"{name:8}{_describe(taken)}" for name, taken in self.measured.items())

    def _read_server(self) -> float:
        return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in self._server) / 1e9


def _describe(taken: Sequence[tuple[float, float]]) -> str:
    """Of client and server, in this order."""
    costs = [[seconds / DELIVERIES * 1e6 for seconds in each] for each in zip(*taken, strict=True)]
    return "".join(f"{statistics.median(each):8.1f} [{min(each):5.1f}]" for each in costs)


def build_finished(claimed: ClaimedDelivery) -> FinishedAttempt:
    """A success."""
    return FinishedAttempt(
        delivery_id=claimed.id,
        endpoint_id=claimed.endpoint.id,
        lease_token=claimed.lease_token,
        attempt=Attempt(
            id=new_id(ATTEMPT),
            delivery_id=claimed.id,
            number=1,
            started_at=utc_now(),
            duration=0.01,
            outcome=AttemptOutcome.RESPONDED,
            status_code=200,
            reason=None,
        ),
        transition=Transition.SUCCEED,
        due_at=None,
        spends_retry=False,
    )


async def add_endpoint(ledger: Ledger) -> str:
    """An organization with one endpoint; its id."""
    now, organization_id = utc_now(), new_id(ORGANIZATION)
    async with ledger.transaction() as transaction:
        await transaction.organizations.add(Organization(organization_id, "Benchmark", now))
        await transaction.endpoints.add(
            Endpoint(
                id=new_id(ENDPOINT),
                organization_id=organization_id,
                url="https://receiver.example/",
                description="",
                event_types=(),
                status=EndpointStatus.ACTIVE,
                status_reason=None,
                sealed_secrets=b"",
                created_at=now,
                updated_at=now,
            )
        )
    return organization_id


async def run_pass(meter: Meter, intake: Intake, queue: Queue, organization_id: str, batch: int) -> None:
    """Accept, claim and finish, one after the other."""
    events = [EVENT.model.model_validate(EVENT.example)] * batch
    claimed: list[Sequence[ClaimedDelivery]] = []

    async def accept() -> None:
        for _ in range(DELIVERIES // batch):
            await intake.accept(organization_id, events)

    async def claim() -> None:
        while sum(map(len, claimed)) < DELIVERIES:
            claimed.append(await queue.claim(batch, room=lambda _: batch, now=utc_now(), lease=timedelta(seconds=45)))

    async def finish() -> None:
        for results in finished:
            await queue.finish(results, utc_now())

    await meter.measure("accept", accept)
    await meter.measure("claim", claim)
    finished = [[build_finished(each) for each in leased] for leased in claimed]
    await meter.measure("finish", finish)


async def measure(server: PostgresServer, batch: int) -> str:
    """What the passes cost."""
    url = server.url(server.create_database())
    database = Database(parse_database_url(url))
    await migrate(database)
    queue = build_queue(database)
    ledger = build_ledger(database, queue.announce)
    intake = Intake(ledger, Metrics(), utc_now)
    organization_id = await add_endpoint(ledger)
    process = await DatabaseServer(SecretStr(url)).find_process()
    # Connections are opened and statements prepared before.
    await run_pass(Meter(()), intake, queue, organization_id, batch)
    meter = Meter(find_family(process) if process else ())
    gc.collect()
    gc.freeze()
    for _ in range(PASSES):
        await run_pass(meter, intake, queue, organization_id, batch)
    await intake.close()
    await queue.close()
    await database.close()
    return meter.describe()


if __name__ == "__main__":
    with PostgresServer(settings=DURABLE) as postgres, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.stdout.write(f"{'':8}{'client':>8}{'server':>16}\n")
        sys.stdout.write(runner.run(measure(postgres, int(sys.argv[1]) if sys.argv[1:] else 250)) + "\n")
