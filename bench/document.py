"""Writes what follows from the kept results: their plots, and the newest one into the documents that quote it.

What stands between the marks in a document is made from the result alone, and a test holds it to that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from carehook.cli.bench.plot import build_plot
from carehook.cli.bench.report import Report
from carehook.cli.bench.table import build_ceiling_lines, build_cost_lines, build_figure_lines

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "bench" / "results"

_BEGIN: Final = "<!-- measured: written by bench/document.py -->"
_END: Final = "<!-- /measured -->"


def find_newest() -> Path:
    """The newest result; the names begin with when it was measured."""
    return max(RESULTS.glob("*.json"))


def read_report(path: Path) -> Report:
    """A result that is kept."""
    return Report.model_validate_json(path.read_text())


def find_block(document: str) -> str:
    """What stands between the marks of a document."""
    return document.partition(_BEGIN)[2].partition(_END)[0]


def replace_block(document: str, block: str) -> str:
    """A document with something else between its marks."""
    before, begin, rest = document.partition(_BEGIN)
    return before + begin + block + _END + rest.partition(_END)[2]


def build_summary(report: Report, name: str) -> str:
    """For the project's README: what is wanted, and what was measured of it."""
    wanted = {figure.name for figure in report.figures if figure.target is not None}
    judged = report.model_copy(update={"figures": [each for each in report.figures if each.name in wanted]})
    return _join([_describe(report), _build_table(build_figure_lines(judged))])


def build_results(report: Report, name: str) -> str:
    """For the README of benchmarks: all of a result, with its plot."""
    return _join(
        [
            _describe(report),
            f"![The figures of this run as bars](results/{name}.svg)",
            _build_table(build_ceiling_lines(report)),
            _build_table(build_figure_lines(report)),
            _build_table(build_cost_lines(report)),
        ]
    )


def _join(parts: list[str]) -> str:
    return "\n" + "\n\n".join(parts) + "\n"


DOCUMENTS: Final[dict[str, Callable[[Report, str], str]]] = {
    "README.md": build_summary,
    "bench/README.md": build_results,
}


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
    newest = find_newest()
    report = read_report(newest)
    for name, build in DOCUMENTS.items():
        path = ROOT / name
        path.write_text(replace_block(path.read_text(), build(report, newest.stem)))


if __name__ == "__main__":
    main()
