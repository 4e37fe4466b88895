"""`carehook bench` runs to its end; how fast it is on this machine is nobody's test."""

from __future__ import annotations

from pathlib import Path

import pytest

from carehook.cli.figures import print_figures
from tests.servers.installation import Installation


def test_a_small_benchmark_measures_everything(tmp_path: Path) -> None:
    report = Installation(tmp_path).read("bench", "--scale", "0.01")
    assert report["machine"]["cores"] >= 1
    assert [figure["name"] for figure in report["figures"] if not figure["value"] > 0] == []


def test_a_figure_that_misses_what_is_wanted_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    figures = [
        {"name": "rate", "value": 1234.5, "unit": "events/s", "target": 1000, "is_limit": False, "is_met": True},
        {"name": "latency", "value": 12.5, "unit": "ms", "target": 10, "is_limit": True, "is_met": False},
    ]
    print_figures({"machine": {"cores": 2}, "figures": figures})
    assert capsys.readouterr().out.splitlines() == [
        "cores\t2",
        "",
        "what\tvalue\twanted",
        "rate\t1,234 events/s\t≥ 1,000 events/s",
        "latency\t12.50 ms\t≤ 10 ms, missed",
    ]
