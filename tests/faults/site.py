"""Carehook in one of its sizes, with its store, its receivers and its load: a place for faults to happen.

A site is on this machine alone, or on a network of a test's own, where store, Carehook and receivers are hosts apart,
the store's disk can be full, and links can be cut.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Final, Self

from tests.faults.accounts import SCHEDULE, Account, build_account
from tests.faults.asking import Api
from tests.faults.books import Store
from tests.faults.callers import Callers
from tests.faults.clocks import FileClock
from tests.faults.endpoints import Registered
from tests.faults.operators import Operators
from tests.faults.processes import ROOT, Process, wait_until
from tests.faults.recipients import FailingReceiver, Habits
from tests.servers.hosts import THIS_MACHINE, Host
from tests.servers.namespaces import Disk, NamespacedHost, Network
from tests.servers.nats import NatsServers
from tests.servers.postgres import PostgresServer

LEASE: Final = 45.0
"""Seconds: the product's own."""

SHORT_LEASE: Final = 3.0
"""Seconds; runs that wait for the end of leases need not wait for long."""

NODES: Final = 3
"""Of NATS, as in production."""

_DISK: Final = 2 << 30
RECEIVERS: Final[Sequence[Callable[[Host], FailingReceiver]]] = (
    partial(FailingReceiver, habits=Habits()),
    partial(
        FailingReceiver,
        habits=Habits(seconds=0.05, fails_every=7, gone_every=200, refused_share=1 / 128),
        ordering="patient",
    ),
    partial(FailingReceiver, habits=Habits(seconds=0.5, fails_every=50), max_in_flight=40),
    partial(
        FailingReceiver,
        habits=Habits(outage=range(5, 15)),
        # Fewer than come, so that it has a backlog.
        rate_limit=5.0,
        event_types=["patient_report_sent"],
    ),
)
"""One of each endpoint."""
_PASSING: Final = partial(FailingReceiver, habits=Habits(fails_every=20))
"""Of the endpoints that come and go."""


class Size(StrEnum):
    """The sizes of Carehook."""

    EMBEDDED = "embedded"
    POSTGRESQL = "postgresql"
    JETSTREAM = "jetstream"


class Site:
    """Everything but the load, while the block lasts. Where a network is given, all is on hosts of it."""

    def __init__(
        self,
        folder: Path,
        size: Size,
        chance: Random,
        *,
        network: Network | None = None,
        lease: float = SHORT_LEASE,
        longest_cut: float = 3.0,
        receivers: Sequence[Callable[[Host], FailingReceiver]] = RECEIVERS,
    ) -> None:
        self.size = size
        self.chance = chance
        self.lease = lease
        self.longest_cut = longest_cut
        self.network = network
        self.hosts: dict[str, NamespacedHost] = {}
        self.disk: Disk | None = None
        self.database: PostgresServer | None = None
        self.queue: NatsServers | None = None
        self.clock = FileClock(folder / "clock")
        self._folder = folder
        self._home = folder / "home"
        # The embedded size is one process that does it all.
        self._worker_count = 0 if size is Size.EMBEDDED else 2
        self._receivers = receivers
        self._stack = ExitStack()
        self._ahead = 0.0
        self._jumps = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.host = self._add_host("carehook")
            self._environment = {**self._build_environment(), **self._open_store(stack)}
            self._run("migrate")
            token = self._run("token", "create", "--role", "operator").splitlines()[-1]
            self.api = Api(f"http://127.0.0.1:{self.host.reach(self._port)}", token)
            self.front = self._add_process(stack, "serve" if self.size is Size.EMBEDDED else "api")
            self.workers = [self._add_process(stack, "worker", str(n)) for n in range(self._worker_count)]
            self.tend()
            host = self._add_host("receivers")
            self.receivers = [stack.enter_context(build(host)) for build in self._receivers]
            self._passing = stack.enter_context(_PASSING(host))
            self.registered = Registered(self.api, self.receivers)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def processes(self) -> list[Process]:
        """All processes of Carehook."""
        return [self.front, *self.workers]

    @property
    def delivering(self) -> list[Process]:
        """The processes of Carehook that deliver."""
        return self.workers or [self.front]

    @contextmanager
    def build_load(
        self, *, publishers: int = 3, professionals: int = 1, pause: float = 0.1, operators: float | None = 0.3
    ) -> Iterator[Callers]:
        """Callers, and people who intervene, while the block lasts.

        Each takes a breath after each call: callers of `pause` seconds, those who intervene of `operators` seconds on
        average; with None nobody intervenes.
        """
        self.callers = Callers(
            self.api, self.registered.organization_id, publishers=publishers, professionals=professionals, pause=pause
        )
        chance = Random(self.chance.random())
        self.operators = Operators(self.api, self.registered, self._passing, chance, operators or 0.0)
        with self.callers, ExitStack() as stack:
            if operators is not None:
                stack.enter_context(self.operators)
            yield self.callers

    def tend(self) -> None:
        """Begin whatever does not run, as a supervisor would; returns once the API says that it is ready."""

        def is_ready() -> bool:
            if self.database is not None and not self.database.is_running():
                self.database.restart()
            if self.queue is not None:
                self.queue.start()
            for process in self.processes:
                process.start()
            return self.api.get_readiness() == 200

        wait_until(is_ready, "readiness")

    def wait_for_progress(self) -> None:
        """Return once every receiver has got something new, but those whose circuit may be open."""
        steady = [receiver for receiver in self.receivers if not receiver.habits.outage]
        before = [len(receiver.arrivals) for receiver in steady]
        wait_until(
            lambda: all(len(each.arrivals) > count for each, count in zip(steady, before, strict=True)),
            "progress",
            self.describe_surprises,
        )

    def describe_surprises(self) -> str:
        """Answers that nothing explains. Whoever got one has stopped in the middle of what they did."""
        return "\n".join([*self.callers.surprises, *self.operators.interventions.surprises])

    def wait_for_refusal(self) -> None:
        """Return once a caller was told that the store is not available."""
        before = self.callers.unavailable
        wait_until(lambda: self.callers.unavailable > before, "refusal")

    def jump(self, seconds: float) -> None:
        """Let the clock jump, ahead or back."""
        self._ahead += seconds
        self._jumps += 1
        self.clock.set_ahead(self._ahead)

    def suffer(self, *faults: Callable[[Self], None]) -> None:
        """Let faults happen, one after another, each at a random moment while events go out."""
        for fault in faults:
            self.wait_for_progress()
            self.wait_a_while()
            print(fault.__name__)
            fault(self)
        self.wait_for_progress()

    def wait_a_while(self, longest: float = 1.5) -> None:
        """Let things take their course for a random while, of so many seconds at most."""
        time.sleep(self.chance.uniform(0.05, longest))

    def reach_database(self) -> str:
        """The URL by which the test itself reaches PostgreSQL."""
        assert self.database is not None
        port = self.database.port
        url = self.database.plain_url(self._database_name)
        return url.replace(f"{self._store_host.address}:{port}", f"127.0.0.1:{self._store_host.reach(port)}")

    def settle(self, callers: Callers) -> Account:
        """What came of it, once all is delivered and every process has drained."""
        self.tend()
        # Or what follows may never come to its end.
        assert self.describe_surprises() == ""
        # Else a circuit that is open for what is refused for ever would keep the rest waiting for minutes.
        for receiver in [*self.receivers, self._passing]:
            receiver.relent()
        self.registered.open_all()
        wait_until(self.registered.is_delivered, "end of the backlog", self.registered.describe_unfinished)
        codes = [process.drain() for process in self.processes]
        store = Store(self._find_store())
        account = build_account(store, callers, self.registered, self.operators.interventions, self._jumps)
        print(f"{account}; {callers.repeated} requests not answered, {callers.unavailable} answered 503")
        assert codes == [0] * len(codes), codes
        return account

    def _add_host(self, name: str) -> Host:
        if self.network is None:
            return THIS_MACHINE
        host = self.network.add_host(name)
        self.hosts[name] = host
        return host

    def _build_environment(self) -> dict[str, str]:
        self._port = self.host.choose_port()
        return {
            # Of this checkout, wherever the tests run with another's packages.
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
            "CAREHOOK_HOME": str(self._home),
            "CAREHOOK_HOST": self.host.address,
            "CAREHOOK_PORT": str(self._port),
            "CAREHOOK_ALLOW_HTTP": "true",
            "CAREHOOK_ALLOWED_NETWORKS": "127.0.0.0/8,10.77.0.0/16",
            "CAREHOOK_RETRY_SCHEDULE": ",".join(map(str, SCHEDULE)),
        }

    def _open_store(self, stack: ExitStack) -> Mapping[str, str]:
        """Open the store; the settings that lead to it."""
        self._home.mkdir(mode=0o700)
        if self.size is Size.EMBEDDED:
            self._add_disk(self.host, self._home, os.getuid(), os.getgid())
            return {}
        host = self._add_host("store")
        self._store_host = host
        self.database = stack.enter_context(
            PostgresServer(host, lambda path, user, group: self._add_disk(host, path, user, group))
        )
        self._database_name = self.database.create_database()
        settings = {"CAREHOOK_DATABASE_URL": self.database.plain_url(self._database_name)}
        if self.size is Size.JETSTREAM:
            hosts = [self._add_host(f"queue{number}") for number in range(NODES)]
            self.queue = stack.enter_context(NatsServers(NODES, hosts=hosts))
            settings["CAREHOOK_QUEUE_URL"] = self.queue.url
        return settings

    def _add_disk(self, host: Host, path: Path, user: int, group: int) -> None:
        if isinstance(host, NamespacedHost):
            self.disk = host.add_disk(path, _DISK, user, group)

    def _run(self, *arguments: str) -> str:
        call = self._build_call(*arguments)
        return str(subprocess.run(**call, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout)

    def _build_call(self, *arguments: str) -> Mapping[str, Any]:
        program = ["-m", "tests.faults.carehook", str(self.lease), str(self._folder / "clock")]
        return self.host.build_call([sys.executable, *program, *arguments], {"env": self._environment})

    def _add_process(self, stack: ExitStack, command: str, name: str = "") -> Process:
        process = Process(self._build_call(command), self._folder / f"{command}{name}.log")
        stack.callback(process.kill)
        return process

    def _find_store(self) -> str:
        """The URL by which the test itself reads the store."""
        if self.database is None:
            # A copy, for SQLite takes a path apart, and so leaves the host.
            shutil.copytree(self.host.find_path(self._home), self._folder / "books")
            return f"sqlite:///{self._folder / 'books' / 'carehook.db'}"
        return self.reach_database()
