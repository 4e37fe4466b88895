"""The machine that a benchmark runs on."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Final

from carehook.cli.bench.load import pick_percentile
from carehook.cli.bench.report import Machine

_WRITES: Final = 50


def describe_machine(folder: Path) -> Machine:
    """This machine; `folder` lies on the disk that is measured."""
    models = (
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    return Machine(
        processor=next(models, platform.machine()),
        cores=os.cpu_count() or 1,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        load_average=round(os.getloadavg()[0], 2),
        fsync_ms=round(_measure_fsync(folder) * 1000, 2),
    )


def _measure_fsync(folder: Path) -> float:
    """Seconds that a write of 4 KiB takes to be on disk, the median of several."""
    path, page, taken = folder / "fsync", bytes(4096), []
    with path.open("wb", buffering=0) as file:
        for _ in range(_WRITES):
            begun = time.perf_counter()
            file.write(page)
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - begun)
    path.unlink()
    return pick_percentile(taken, 0.5)
