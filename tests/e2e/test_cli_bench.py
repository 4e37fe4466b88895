"""`carehook bench` runs to its end; how fast it is on this machine is nobody's test."""

from __future__ import annotations

from pathlib import Path

import pytest

from carehook.cli.bench.report import Figure
from carehook.cli.bench.table import build_cell
from tests.servers.installation import Installation


def test_a_small_benchmark_measures_every_scenario(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    listed = [line.split("\t")[0] for line in installation.run("bench", "--list").stdout.splitlines()]

    report = installation.read("bench", "--scale", "0.002")

    assert report["failures"] == []
    assert {figure["scenario"] for figure in report["figures"]} - {"all of them"} <= set(listed)
    assert [figure["name"] for figure in report["figures"] if not figure["value"] > 0] == []
    assert [ceiling["name"] for ceiling in report["ceilings"] if not ceiling["after"] > 0] == []


@pytest.mark.parametrize(
    ("value", "is_limit", "is_met", "shown"),
    [
        (1234.5, False, True, "1,234 (met: ≥ 1,000)"),
        (12.5, True, False, "12.50 (missed: ≤ 1,000)"),
    ],
)
def test_what_is_wanted_stands_beside_a_figure(value: float, is_limit: bool, is_met: bool, shown: str) -> None:
    figure = Figure(
        scenario="deliver",
        setup="embedded",
        name="rate",
        value=value,
        unit="events/s",
        target=1000,
        is_limit=is_limit,
        is_met=is_met,
    )

    assert build_cell(figure) == shown
