"""PostgreSQL 18 out of a wheel: a real server on loopback that needs nothing installed and leaves nothing behind.

PostgreSQL refuses to run as root, so root hands it to `nobody`. Unless settings say otherwise it keeps no promise about
power cuts (`fsync` is off), only about the death of its processes, and it starts in under a second.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

from tests.servers.hosts import THIS_MACHINE, Host
from tests.servers.postgres_programs import choose_account, find_binaries, give, identify, make_directory
from tests.servers.processes import end_process, start_watchdog

SUPERUSER = "postgres"
START_TIMEOUT = 30.0

FAST = {"fsync": "off", "full_page_writes": "off"}
"""The settings of a server whose data nobody will miss."""

# When the tests' process has let go of it, nothing may stay. It stops the server where that runs, which may have been
# frozen, and removes what there is on this machine.
STOPPER = """
read -r _
if pid=$(head -n 1 "$2/data/postmaster.pid" 2>/dev/null); then
    kill -CONT $(cat "/proc/$pid/task/$pid/children" 2>/dev/null) "$pid" 2>/dev/null
fi
exec "$1" stop --pgdata "$2/data" --mode immediate --silent
"""
WATCHDOG = 'directory=$1; shift; "$@"; rm -rf -- "$directory"'


class PostgresServer:
    """A server with a data directory of its own; `with` starts it, and removes all of it at the end.

    Tests that call `kill`, `stop` or `restart` make their own; the fixture `postgres_server` is shared. It runs on
    `host`, and where `add_disk` is given its data lie on the disk that this puts at the data directory.
    """

    def __init__(
        self,
        host: Host = THIS_MACHINE,
        add_disk: Callable[[Path, int, int], object] | None = None,
        settings: Mapping[str, str] = FAST,
    ) -> None:
        self._settings = settings
        self.port = host.choose_port()
        self._host = host
        self._add_disk = add_disk
        self._password = secrets.token_urlsafe(16)
        self._names = (f"test_{number}" for number in count(1))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._account = choose_account()
        self._directory = make_directory(self._account)
        self._binaries = find_binaries(self._directory, self._account)
        self._watchdog = self._start_watchdog()
        try:
            self._initialise()
            self.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def url(self, database: str = SUPERUSER) -> str:
        """The address of a database as SQLAlchemy and `CAREHOOK_DATABASE_URL` take it."""
        return self.plain_url(database).replace("postgresql:", "postgresql+asyncpg:", 1)

    def plain_url(self, database: str = SUPERUSER) -> str:
        """The address of a database as libpq and asyncpg take it."""
        return f"postgresql://{SUPERUSER}:{self._password}@{self._host.address}:{self.port}/{database}"

    def create_database(self, template: str = "template1") -> str:
        """Make a database nothing else uses, a copy of `template`; returns its name."""
        name = next(self._names)
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    def drop_database(self, name: str) -> None:
        """Remove a database, and close whatever is still connected to it."""
        self._execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def start(self) -> None:
        """Start a server that is not running; returns when it takes connections."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            self._process = self._spawn()
            if self._wait_until_ready(self._process, deadline):
                return
            # After `kill`, what is left of the old server may still hold its memory; the new one then gives up.
            time.sleep(0.05)
        raise RuntimeError(f"PostgreSQL did not start:\n{self._read_log()}")

    def stop(self) -> None:
        """Close all connections and stop, as an operator would; a server that is not running stays so."""
        self._end(signal.SIGINT)

    def stop_at_once(self) -> None:
        """Stop without a checkpoint, dropping all connections; the next start recovers from the log."""
        self._end(signal.SIGQUIT)

    def kill(self) -> None:
        """End the server without warning, as a crash would."""
        self._end(signal.SIGKILL)

    def kill_backend(self, chance: Random) -> None:
        """End one of the server's processes but the first without warning; it drops all connections and recovers."""
        self._signal(signal.SIGKILL, chance.choice(self._list_backends()))

    def freeze(self) -> None:
        """Let all of its processes stand still, until `thaw`. The kernel takes what is sent to them."""
        if self._process is not None:
            # The first one first, so that it makes no more.
            self._signal(signal.SIGSTOP, self._process.pid)
            self._signal(signal.SIGSTOP, *self._list_backends())

    def thaw(self) -> None:
        """Let them go on."""
        if self._process is not None:
            self._signal(signal.SIGCONT, *self._list_backends(), self._process.pid)

    def _list_backends(self) -> list[int]:
        if self._process is None:
            return []
        pid = self._process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def _signal(self, number: signal.Signals, *pids: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # it may just have ended by itself
                os.kill(pid, number)

    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def restart(self) -> None:
        """Start again, on the same port and data, whether it runs, was stopped or was killed."""
        self.stop()
        self.start()

    def _initialise(self) -> None:
        data = self._directory / "data"
        data.mkdir(mode=0o700)
        give(data, self._account)
        options = ["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync", "--no-instructions"]
        if self._add_disk is not None:
            self._add_disk(data, *identify(self._account))
            # A file of the log in a sixteenth of the room.
            options.append("--wal-segsize=1")
        password_file = self._directory / "password"
        password_file.write_text(self._password)
        give(password_file, self._account)
        where = [f"--pgdata={data}", f"--username={SUPERUSER}", f"--pwfile={password_file}"]
        subprocess.run(
            **self._host.build_call([self._binaries / "initdb", *where, *options], self._account),
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self._directory,
        )
        with self._host.find_path(data / "pg_hba.conf").open("a") as file:
            file.write("host all all all scram-sha-256\n")

    def _spawn(self) -> subprocess.Popen[bytes]:
        settings = {
            "port": self.port,
            "listen_addresses": self._host.address,
            "unix_socket_directories": "",
            "max_connections": 200,
            **self._settings,
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        with (self._directory / "log").open("ab") as log:
            return subprocess.Popen(
                **self._host.build_call(
                    [self._binaries / "postgres", "-D", self._directory / "data", *options], self._account
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                start_new_session=True,
            )

    def _wait_until_ready(self, process: subprocess.Popen[bytes], deadline: float) -> bool:
        while process.poll() is None and time.monotonic() < deadline:
            if self._is_ready(process):
                return True
            time.sleep(0.02)
        self._end(signal.SIGKILL)
        return False

    def _is_ready(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether this very process says it is: whatever else listens on the port cannot be taken for it."""
        try:
            lines = self._host.find_path(self._directory / "data" / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return lines[:1] == [str(process.pid)] and lines[7:8] != [] and lines[7].strip() == "ready"

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            end_process(process, how)

    def _execute(self, statement: str) -> None:
        environment = {
            "PATH": "/usr/bin:/bin",
            "PGHOST": self._host.address,
            "PGPORT": str(self.port),
            "PGUSER": SUPERUSER,
            "PGPASSWORD": self._password,
            "PGDATABASE": SUPERUSER,
        }
        command: list[str | Path] = [self._binaries / "psql", "--no-psqlrc", "--quiet", "--command", statement]
        done = subprocess.run(
            **self._host.build_call(command, {"env": environment}),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{statement}: {done.stderr.strip()}\n{self._read_log()}")

    def _read_log(self) -> str:
        return (self._directory / "log").read_text(errors="replace")[-4000:]

    def _start_watchdog(self) -> subprocess.Popen[bytes]:
        stopper: list[str | Path] = ["/bin/sh", "-c", STOPPER, "stopper", self._binaries / "pg_ctl", self._directory]
        call = self._host.build_call(stopper, self._account)
        # Within the call the account may be changed on the way; who removes is who made.
        return start_watchdog(WATCHDOG, self._directory, *call.pop("args"), **call)

    def _remove(self) -> None:
        self.stop()
        self._watchdog.communicate()
