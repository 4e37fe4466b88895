"""Writes what follows from the kept results: their plots, and the newest ones into the documents that quote them.

What stands between marks in a document is made from the results alone, and a test holds it to that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from carehook.cli.bench.plot import build_plot
from carehook.cli.bench.report import Figure, Report
from carehook.cli.bench.table import build_ceiling_lines, build_cost_lines, build_figure_lines

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "bench" / "results"

FAULTS: Final = RESULTS / "faults"
"""Where `tests.faults.long` keeps its counts."""

_SIZES: Final = ("embedded", "postgresql", "jetstream")

_DELIVERED: Final = "delivered, 2 KB in batches of 500"
_OWN: Final = ("serve", "api", "worker", "postgresql")
_DUE: Final = (10_000, 100_000, 1_000_000, 5_000_000)

_COUNTS: Final = {
    "events accepted": "accepted",
    "deliveries taken": "delivered",
    "lost": "lost",
    "taken again": "repeated",
    "… by an interrupted attempt": "explained_by_interruption",
    "… by a connection that broke": "explained_by_connection",
    "… unexplained": "unexplained",
    "kept in a patient's order": "in_order",
}


def find_newest() -> Path:
    """The newest result; the names begin with when it was measured."""
    return max(RESULTS.glob("*.json"))


def read_report(path: Path) -> Report:
    """A result that is kept."""
    return Report.model_validate_json(path.read_text())


def find_block(document: str, mark: str) -> str:
    """What stands between marks of a document."""
    return document.partition(_begin(mark))[2].partition(_end(mark))[0]


def replace_block(document: str, mark: str, block: str) -> str:
    """A document with something else between its marks."""
    before, begin, rest = document.partition(_begin(mark))
    return before + begin + block + _end(mark) + rest.partition(_end(mark))[2]


def _begin(mark: str) -> str:
    return f"<!-- {mark}: written by bench/document.py -->"


def _end(mark: str) -> str:
    return f"<!-- /{mark} -->"


def build_summary() -> str:
    """For the project's README: what is wanted, and what was measured of it."""
    report = read_report(find_newest())
    wanted = {figure.name for figure in report.figures if figure.target is not None}
    judged = report.model_copy(update={"figures": [each for each in report.figures if each.name in wanted]})
    return _join([_describe(report), _build_table(build_figure_lines(judged))])


def build_results() -> str:
    """For the README of benchmarks: all of a result, with its plot."""
    newest = find_newest()
    report = read_report(newest)
    return _join(
        [
            _describe(report),
            f"![The figures of this run as bars](results/{newest.stem}.svg)",
            _build_table(build_ceiling_lines(report)),
            _build_table(build_figure_lines(report)),
            _build_table(build_cost_lines(report)),
        ]
    )


def build_costs() -> str:
    """For sizing: microseconds of processor time for each delivery or event, embedded and apart."""
    figures = read_report(find_newest()).figures
    single = "single events, 64 callers"
    lines = [
        ["µs a delivery of a 2 KB event", "embedded", "PostgreSQL, api and worker apart"],
        *(
            [what, "", f"{_find_cost(figures, _DELIVERED, 'postgresql-apart', role):.0f}"]
            for what, role in (
                ("accepted in batches of 500: the API", "api"),
                ("the worker", "worker"),
                ("PostgreSQL", "postgresql"),
            )
        ),
        *(
            [what, *(f"{_find_cost(figures, name, setup, *_OWN):.0f}" for setup in ("embedded", "postgresql-apart"))]
            for what, name in (
                ("together", _DELIVERED),
                ("the same, TLS to the receiver", f"{_DELIVERED}, TLS"),
                ("the same, each event to ten endpoints", "delivered, fan-out 10"),
                ("the same, bodies of 20 KB", "delivered, 20 KB"),
                ("the same, receivers that answer after 500 ms", "delivered, 10 endpoints that answer after 500 ms"),
            )
        ),
        *(
            [
                what,
                f"{_find_cost(figures, name, 'embedded', 'serve'):.0f}",
                f"{_find_cost(figures, name, 'postgresql-apart', 'api'):.0f}",
            ]
            for what, name in (
                ("a single event, nothing to deliver: the API", f"accepted with nothing to deliver, {single}"),
                ("a single event beside its delivery: the API (embedded: all)", f"accepted while delivering, {single}"),
            )
        ),
    ]
    return _join([_build_table(lines)])


def build_backlogs() -> str:
    """For sizing: what a claim takes while so many deliveries are due, and work after a history."""
    figures = {(figure.name, figure.setup): figure.value for figure in read_report(find_newest()).figures}
    lines = [
        ["due deliveries, of 100 endpoints", *(f"{due:,}" for due in _DUE)],
        *(
            [what, *(f"{figures[f'claim of 500 at {due:,} due', setup]:.1f}" for due in _DUE)]
            for what, setup in (
                ("claim of 500 by a worker that knows nothing yet, SQLite, ms", "embedded"),
                ("the same, PostgreSQL, ms", "postgresql"),
            )
        ),
        *(
            [what, *(f"{value:.1f}" if value else "" for value in found)]
            for what, setup in (
                ("500 events accepted, claimed and finished after so many are over, SQLite, ms", "embedded"),
                ("the same, PostgreSQL, ms", "postgresql"),
            )
            for found in [[figures.get((f"500 accepted, claimed and finished after {due:,}", setup)) for due in _DUE]]
        ),
    ]
    return _join([_build_table(lines)])


def _find_cost(figures: Sequence[Figure], name: str, setup: str, *roles: str) -> float:
    """Microseconds of a core that these roles spent on each."""
    [figure] = [each for each in figures if each.name == name and each.setup == setup]
    return sum(share for role, share in (figure.cpu or {}).items() if role in roles) / figure.value * 1e6


def build_fault_counts() -> str:
    """For the README of benchmarks: the newest long fault run on each size."""
    runs = [json.loads(max(FAULTS.glob(f"*-{size}.json")).read_text()) for size in _SIZES]
    lines = [
        ["", *_SIZES],
        ["began", *(run["began_at"][:16].replace("T", " ") for run in runs)],
        ["seconds, and faults in them", *(f"{run['seconds']:,.0f}, {sum(run['faults'].values())}" for run in runs)],
        *([name, *(f"{_get_count(run, key):,}" for run in runs)] for name, key in _COUNTS.items()),
    ]
    return _join([_build_table(lines)])


def _get_count(run: dict[str, Any], key: str) -> int:
    return int(run["account"][key])


def _join(parts: list[str]) -> str:
    return "\n" + "\n\n".join(parts) + "\n"


BLOCKS: Final[dict[tuple[str, str], Callable[[], str]]] = {
    ("README.md", "measured"): build_summary,
    ("bench/README.md", "measured"): build_results,
    ("bench/README.md", "faults"): build_fault_counts,
    ("docs/operations/sizing.md", "costs"): build_costs,
    ("docs/operations/sizing.md", "backlogs"): build_backlogs,
}
"""What stands between which marks of which document."""


def _describe(report: Report) -> str:
    machine = report.machine
    stores = "; ".join(dict.fromkeys(setup.store for setup in report.setups))
    return (
        f"{report.measured_at:%Y-%m-%d}, Carehook {report.carehook} on {machine.name}, {machine.system}, "
        f"Python {machine.python}; a write is durable after {machine.fsync_ms:g} ms; load {machine.load_average:g} as "
        f"it began; scale {report.scale:g}, {report.seconds:,.0f} s in all, worker processes where they are apart: "
        f"{report.workers}. {stores}."
    )


def _build_table(lines: list[list[str]]) -> str:
    header, *rows = lines
    marks = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in (header, marks, *rows))


def main() -> None:
    """Rewrite the plots and the documents."""
    for result in RESULTS.glob("*.json"):
        result.with_suffix(".svg").write_text(build_plot(read_report(result)))
    for (name, mark), build in BLOCKS.items():
        path = ROOT / name
        path.write_text(replace_block(path.read_text(), mark, build()))


if __name__ == "__main__":
    main()
