"""Results that are kept: a run as JSON and as a plot beside it, named by when and on what machine it was made."""

from __future__ import annotations

import re
from pathlib import Path

from carehook.cli.bench.plot import build_plot
from carehook.cli.bench.processes import BenchmarkFailed
from carehook.cli.bench.report import Report


def keep_report(report: Report, folder: Path) -> Path:
    """Write a report and its plot into a folder; the file of the report. Raises `BenchmarkFailed` where it cannot."""
    path = folder / f"{build_name(report)}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(report.model_dump_json(indent=2) + "\n")
        path.with_suffix(".svg").write_text(build_plot(report))
    except OSError as error:
        raise BenchmarkFailed(f"The result cannot be kept in {folder}: {error.strerror}.") from None
    return path


def build_name(report: Report) -> str:
    """The name of a report's files: "2026-11-22-1430-amd-epyc-2-cores"."""
    processor = re.sub(r"[^a-z0-9]+", "-", report.machine.processor.lower()).strip("-")
    return f"{report.measured_at:%Y-%m-%d-%H%M}-{processor}-{report.machine.cores}-cores"
