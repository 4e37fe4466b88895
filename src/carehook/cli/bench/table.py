"""A report for people: one line a figure, the setups side by side."""

from __future__ import annotations

import sys
from typing import Final

from carehook.cli.bench.report import Figure, Report, format_target, format_value
from carehook.cli.bench.usage import LOAD, OTHERS, RECEIVER
from carehook.cli.output import open_console, print_unbroken, say

_ROLES: Final = ("serve", "api", "worker", "postgresql", RECEIVER, LOAD, OTHERS)
_SURROUNDINGS: Final = (RECEIVER, LOAD, OTHERS)


def print_report(report: Report) -> None:
    """Print the machine, the ceilings and the figures: tables on a terminal, else tab-separated lines."""
    print(f"{report.machine.name}, {report.machine.system}, Python {report.machine.python}")
    print(f"fsync {report.machine.fsync_ms:g} ms, load {report.machine.load_average:g} as it began")
    for setup in report.setups:
        print(f"{setup.title}: {setup.store}")
    print()
    _print_lines(build_ceiling_lines(report))
    print()
    _print_lines(build_figure_lines(report))
    if any(figure.cpu for figure in report.figures):
        print()
        _print_lines(build_cost_lines(report))
    for failure in report.failures:
        say(f"{failure.scenario} could not be measured on {failure.setup}: {failure.reason}")


def build_ceiling_lines(report: Report) -> list[list[str]]:
    """The header and a line a ceiling, of cells."""
    header = ["the HTTP client alone, requests/s", "before", "after", "its processor time for each, µs"]
    return [
        header,
        *([each.name, f"{each.before:,.0f}", f"{each.after:,.0f}", f"{each.cpu_us:.0f}"] for each in report.ceilings),
    ]


def build_figure_lines(report: Report) -> list[list[str]]:
    """The header and a line a figure, of cells: its name with its unit, then its value in each setup."""
    names = list(dict.fromkeys((figure.name, figure.unit) for figure in report.figures))
    found = {(figure.name, figure.setup): figure for figure in report.figures}
    lines = [["figure", *(setup.title for setup in report.setups)]]
    for name, unit in names:
        cells = [build_cell(found.get((name, setup.name))) for setup in report.setups]
        lines.append([f"{name}, {unit}" if unit else name, *cells])
    return lines


def build_cost_lines(report: Report) -> list[list[str]]:
    """The header and a line a rate, of cells: microseconds of a core that each role spent on one delivery or event.

    Where others are at work as well, rates fall; these hardly grow.
    """
    known = [figure for figure in report.figures if figure.cpu and figure.unit.endswith("/s")]
    roles = [role for role in _ROLES if any(role in (figure.cpu or ()) for figure in known)]
    titles = {setup.name: setup.title for setup in report.setups}
    lines = [["processor time for each, µs", "setup", *roles, "Carehook and store"]]
    for figure in known:
        costs = {role: share / figure.value * 1e6 for role, share in (figure.cpu or {}).items()}
        cells = [f"{costs[role]:,.0f}" if role in costs else "" for role in roles]
        own = sum(cost for role, cost in costs.items() if role not in _SURROUNDINGS)
        lines.append([figure.name, titles[figure.setup], *cells, f"{own:,.0f}"])
    return lines


def build_cell(figure: Figure | None) -> str:
    """A figure's value, with what is wanted of it where something is."""
    if figure is None:
        return ""
    value = format_value(figure.value)
    if figure.target is None:
        return value
    return f"{value} ({'met' if figure.is_met else 'missed'}: {format_target(figure)})"


def _print_lines(lines: list[list[str]]) -> None:
    if not sys.stdout.isatty():
        for line in lines:
            print("\t".join(line))
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for number, title in enumerate(lines[0]):
        table.add_column(title, justify="right" if number else "left")
    for line in lines[1:]:
        table.add_row(*line)
    print_unbroken(open_console(), table)
