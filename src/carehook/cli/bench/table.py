"""A report for people: one line a figure, the setups side by side."""

from __future__ import annotations

import sys
from typing import Final

from carehook.cli.bench.report import Figure, Report, format_target, format_value
from carehook.cli.bench.usage import LOAD, OTHERS
from carehook.cli.output import open_console, print_unbroken, say

_ROLES: Final = ("serve", "api", "worker", "postgresql", "receiver", LOAD, OTHERS)


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
        _print_lines(build_cpu_lines(report))
    for failure in report.failures:
        say(f"{failure.scenario} could not be measured on {failure.setup}: {failure.reason}")


def build_ceiling_lines(report: Report) -> list[list[str]]:
    """The header and a line a ceiling, of cells."""
    header = ["the HTTP client alone, requests/s", "before", "after"]
    return [header, *([each.name, f"{each.before:,.0f}", f"{each.after:,.0f}"] for each in report.ceilings)]


def build_figure_lines(report: Report) -> list[list[str]]:
    """The header and a line a figure, of cells: its name with its unit, then its value in each setup."""
    names = list(dict.fromkeys((figure.name, figure.unit) for figure in report.figures))
    found = {(figure.name, figure.setup): figure for figure in report.figures}
    lines = [["figure", *(setup.title for setup in report.setups)]]
    for name, unit in names:
        cells = [build_cell(found.get((name, setup.name))) for setup in report.setups]
        lines.append([f"{name}, {unit}" if unit else name, *cells])
    return lines


def build_cpu_lines(report: Report) -> list[list[str]]:
    """The header and a line a figure whose processor time is known, of cells: each role's share of a core."""
    known = [figure for figure in report.figures if figure.cpu]
    roles = [role for role in _ROLES if any(role in (figure.cpu or ()) for figure in known)]
    titles = {setup.name: setup.title for setup in report.setups}
    lines = [["shares of a core", "setup", *roles]]
    for figure in known:
        shares = figure.cpu or {}
        cells = [f"{shares[role]:.2f}" if role in shares else "" for role in roles]
        lines.append([figure.name, titles[figure.setup], *cells])
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
