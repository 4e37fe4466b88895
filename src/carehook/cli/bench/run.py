"""One run of all measurements on a fresh embedded store, and its report."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from carehook import __version__
from carehook.cli.bench.measure import (
    LATENCY_RATE,
    Measured,
    build_client,
    build_event,
    measure_accepting,
    measure_accepting_batches,
    measure_ceiling,
    measure_delivering,
    measure_latency,
    pick_percentile,
    wait_for,
)
from carehook.cli.bench.processes import start_carehook, start_receiver

Progress = Callable[[str], None]


async def run_benchmark(scale: float, tell: Progress) -> list[Measured]:
    """Measure everything, `scale` times the usual number of events; `tell` is told what is being measured."""
    single, batches = max(64, int(20_000 * scale)), max(4, int(60 * scale))
    warm_up = max(64, single // 10)
    client = build_client()
    with tempfile.TemporaryDirectory(prefix="carehook-bench-") as home:
        async with start_receiver() as receiver:
            tell("the ceiling: the HTTP client alone")
            await measure_ceiling(client, receiver, warm_up)
            ceiling = await measure_ceiling(client, receiver, single)
            async with start_carehook(Path(home), receiver, client) as carehook:
                tell("accepting and delivering, to warm up")
                await measure_delivering(client, carehook, receiver, 4)
                tell(f"publish to receipt at {LATENCY_RATE} events/s")
                latencies = await measure_latency(client, carehook, receiver, max(200, int(2_000 * scale)))
                tell("accepting single events")
                accepted = await measure_accepting(client, carehook, single)
                await wait_for(client, receiver, len(latencies) + single)
                tell("delivering, end to end")
                delivered = await measure_delivering(client, carehook, receiver, batches)
                tell("accepting batches")
                accepted_batches = await measure_accepting_batches(client, carehook, batches)
                memory = carehook.read_peak_memory()
    await client.close()
    return [
        Measured("ceiling: the HTTP client alone", ceiling, "requests/s"),
        Measured("accepted, single events, 64 callers", accepted, "events/s", target=1_500),
        Measured("accepted, batches of 500", accepted_batches, "events/s"),
        Measured("delivered, end to end", delivered, "events/s", target=2_500),
        Measured("delivered, share of the ceiling", delivered / ceiling, ""),
        Measured("publish to receipt, p50", pick_percentile(latencies, 0.5), "ms", target=10, is_limit=True),
        Measured("publish to receipt, p99", pick_percentile(latencies, 0.99), "ms"),
        Measured("peak memory of the service", memory / 2**20, "MB", target=200, is_limit=True),
    ]


def describe_machine() -> dict[str, Any]:
    """The machine that a figure was measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "carehook": __version__,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),  # noqa: TID251 (a stamp on a report)
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "store": "embedded (SQLite, synchronous=FULL)",
        "body_bytes": len(build_event()),
    }


def build_report(figures: list[Measured]) -> dict[str, Any]:
    """The machine and the figures, as they are printed with `--json`."""
    return {
        "machine": describe_machine(),
        "figures": [{**asdict(figure), "is_met": figure.is_met} for figure in figures],
    }
