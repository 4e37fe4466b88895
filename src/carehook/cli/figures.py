"""How a benchmark's report is shown to people."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from carehook.cli.output import print_table


class _Line(BaseModel):
    what: str
    value: str
    wanted: str


def print_figures(report: dict[str, Any]) -> None:
    """Print the machine, then each figure beside what is wanted of it."""
    for name, value in report["machine"].items():
        print(f"{name}\t{value}")
    print()
    print_table([_build_line(figure) for figure in report["figures"]], ["what", "value", "wanted"])


def _build_line(figure: dict[str, Any]) -> _Line:
    unit = figure["unit"]
    value = f"{figure['value']:,.0f}" if figure["value"] >= 100 else f"{figure['value']:,.2f}"
    wanted = "-"
    if figure["target"] is not None:
        missed = "" if figure["is_met"] else ", missed"
        wanted = f"{'≤' if figure['is_limit'] else '≥'} {figure['target']:,g} {unit}{missed}"
    return _Line(what=figure["name"], value=f"{value} {unit}".strip(), wanted=wanted)
