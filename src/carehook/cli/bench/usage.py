"""What processes use, as the kernel counts it: memory at its peak, and processor time (proc(5))."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_TICKS: Final = os.sysconf("SC_CLK_TCK")

LOAD: Final = "load"
"""The process that makes the load."""

RECEIVER: Final = "receiver"
"""The process that receives."""

OTHERS: Final = "others"
"""Whatever else ran on the machine, such as NATS, the kernel's own work, and strangers."""


def read_peak_memory(pid: int) -> int:
    """The most memory that a process ever held, in bytes (`VmHWM`); 0 where it has ended."""
    try:
        status = (_PROC / str(pid) / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def find_family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _read_stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    family = [pid]
    for member in family:
        family += children.get(member, [])
    return family


def find_parent(pid: int, program: str) -> int | None:
    """The parent of a process, if that runs `program`; None where it does not, as on another machine."""
    fields = _read_stat(pid)
    if not fields or (_PROC / str(pid) / "comm").read_text().strip() != program:
        return None
    return int(fields[1])


def read_cpu_seconds(pids: Collection[int]) -> float:
    """Seconds of processor time, of user and system, that the processes took until now."""
    found = [fields for pid in pids if (fields := _read_stat(pid))]
    return sum(int(fields[11]) + int(fields[12]) for fields in found) / _TICKS


def read_busy_seconds() -> float:
    """Seconds of processor time that the whole machine worked until now."""
    user, nice, system, _, _, interrupts, soft, *_ = (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, (user, nice, system, interrupts, soft))) / _TICKS


class CpuMeter:
    """Processor time by role from its making to `read`, as shares of one core."""

    def __init__(self, roles: Mapping[str, int]) -> None:
        self._families = {role: find_family(pid) for role, pid in roles.items()}
        self._families[LOAD] = [os.getpid()]
        self._begun = time.monotonic()
        self._before = self._sample()

    def read(self) -> dict[str, float]:
        """The share of a core that each role took; `others` is what else the machine did."""
        elapsed = time.monotonic() - self._begun
        spent = {role: after - self._before[role] for role, after in self._sample().items()}
        spent[OTHERS] = max(0.0, spent[OTHERS] - sum(spent[role] for role in self._families))
        return {role: round(seconds / elapsed, 3) for role, seconds in spent.items()}

    def _sample(self) -> dict[str, float]:
        return {
            **{role: read_cpu_seconds(family) for role, family in self._families.items()},
            OTHERS: read_busy_seconds(),
        }


def _read_stat(pid: int) -> list[str]:
    """The fields of `/proc/PID/stat` from the third on, since the second may hold spaces; none where it has ended."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
