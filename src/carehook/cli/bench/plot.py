"""A report as a picture: horizontal bars, a panel for each kind of figure, the setups side by side (SVG 1.1).

A tick marks what is wanted of a figure. All bars of a panel have the same scale, which begins at 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap
from typing import Final

from carehook.cli.bench.measured import name_share
from carehook.cli.bench.report import Figure, Report, format_target, format_value

WIDTH: Final = 1000
BARS_LEFT: Final = 306
BARS_WIDTH: Final = 330
_VALUES_RIGHT: Final = BARS_LEFT + BARS_WIDTH + 64
_MARGIN: Final = 32
_BAR: Final = 13
_BAR_PITCH: Final = 16
_ROW_GAP: Final = 12
_LINE: Final = 16
_LABEL_CHARACTERS: Final = 42
_JUDGED_WIDTH: Final = 112
_COLORS: Final = {"embedded": "#3b6ea5", "postgresql": "#7fb069", "postgresql-apart": "#2f7f5f", "jetstream": "#c97b2e"}
_OTHER_COLOR: Final = "#777777"
_INK: Final = "#1d2730"
_MUTED: Final = "#66727d"
_MET: Final = "#2f7f5f"
_MISSED: Final = "#b3362c"
_FONT: Final = "Inter, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif"


@dataclass(frozen=True, slots=True)
class Panel:
    """A group of figures that have a unit and a scale in common."""

    title: str
    holds: Callable[[Figure], bool]


PANELS: Final = (
    Panel("Delivered, deliveries/s", lambda figure: figure.unit == "deliveries/s"),
    Panel("Accepted, events/s", lambda figure: figure.unit == "events/s"),
    Panel("Publish to receipt, ms", lambda figure: figure.scenario.startswith("latency-")),
    Panel("One event to 1,000 endpoints, s", lambda figure: figure.scenario == "one-to-1000"),
    Panel("Beside endpoints that hang, ms", lambda figure: figure.scenario == "hanging" and figure.unit == "ms"),
    Panel("Claims while much is due, ms", lambda figure: figure.scenario == "backlog" and figure.unit == "ms"),
    Panel("Work after a history, ms", lambda figure: figure.scenario == "history" and figure.unit == "ms"),
    Panel("Memory, MB", lambda figure: figure.unit == "MB"),
)


def build_plot(report: Report) -> str:
    """The picture of a report, an SVG document."""
    drawn: list[str] = []
    y = _draw_heading(report, drawn)
    for panel in PANELS:
        figures = [figure for figure in report.figures if panel.holds(figure)]
        if figures:
            y = _draw_panel(panel, figures, report, y, drawn)
    height = y + _MARGIN // 2
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" font-family="{_FONT}" fill="{_INK}">'
    )
    title = f"<title>carehook bench on {escape(report.machine.name)}</title>"
    ground = f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
    return "\n".join([opening, title, ground, *drawn, "</svg>\n"])


def _draw_heading(report: Report, drawn: list[str]) -> int:
    machine = report.machine
    drawn.append(_text(_MARGIN, 44, "carehook bench", size=22, weight=600))
    said = f"Carehook {report.carehook} on {machine.name}, {machine.system}, Python {machine.python}"
    drawn.append(_text(_MARGIN, 66, said, color=_MUTED))
    ceilings = "; ".join(f"{each.name} {each.value:,.0f}" for each in report.ceilings)
    when = f"{report.measured_at:%Y-%m-%d}, scale {report.scale:g}"
    drawn.append(_text(_MARGIN, 84, f"{when}. The HTTP client alone, requests/s: {ceilings}", color=_MUTED))
    x = _MARGIN
    for setup in report.setups:
        color = _COLORS.get(setup.name, _OTHER_COLOR)
        drawn.append(f'<rect x="{x}" y="100" width="12" height="12" rx="2" fill="{color}"/>')
        drawn.append(_text(x + 18, 110, setup.title))
        x += 18 + 7 * len(setup.title) + 24
    return 128


def _draw_panel(panel: Panel, figures: Sequence[Figure], report: Report, y: int, drawn: list[str]) -> int:
    """Draw a panel from `y` on; where the next one begins."""
    drawn.append(_text(_MARGIN, y + 22, panel.title, size=15, weight=600))
    drawn.append(f'<path d="M{_MARGIN} {y + 30}H{WIDTH - _MARGIN}" stroke="#d9dee3"/>')
    y += 30 + _ROW_GAP
    scale = BARS_WIDTH / max(max(figure.value, figure.target or 0) for figure in figures)
    shares = {(figure.name, figure.setup): figure.value for figure in report.figures}
    for name, row in _group(figures):
        lines = wrap(name, _LABEL_CHARACTERS)
        for number, line in enumerate(lines):
            drawn.append(_text(_MARGIN, y + 11 + number * _LINE, line))
        for number, figure in enumerate(row):
            share = shares.get((name_share(name), figure.setup))
            drawn += _draw_bar(figure, share, y + number * _BAR_PITCH, scale)
        y += max(len(row) * _BAR_PITCH, len(lines) * _LINE) + _ROW_GAP
    return y + _ROW_GAP


def _draw_bar(figure: Figure, share: float | None, y: int, scale: float) -> Iterator[str]:
    color = _COLORS.get(figure.setup, _OTHER_COLOR)
    yield f'<rect x="{BARS_LEFT}" y="{y}" width="{figure.value * scale:.1f}" height="{_BAR}" rx="2" fill="{color}"/>'
    yield _text(_VALUES_RIGHT, y + 11, format_value(figure.value), weight=600, anchor="end")
    x = _VALUES_RIGHT + 12
    if figure.target is not None:
        tick = BARS_LEFT + figure.target * scale
        yield f'<path d="M{tick:.1f} {y - 2}v{_BAR + 4}" stroke="{_INK}" stroke-width="2"/>'
        judged = f"{'met' if figure.is_met else 'missed'}: {format_target(figure)}"
        yield _text(x, y + 11, judged, color=_MET if figure.is_met else _MISSED)
        x += _JUDGED_WIDTH
    if share is not None:
        yield _text(x, y + 11, f"{share:.2f} of the ceiling", color=_MUTED)


def _group(figures: Sequence[Figure]) -> list[tuple[str, list[Figure]]]:
    rows: dict[str, list[Figure]] = {}
    for figure in figures:
        rows.setdefault(figure.name, []).append(figure)
    return list(rows.items())


def _text(
    x: float, y: float, text: str, *, size: int = 12, weight: int = 400, color: str = _INK, anchor: str = "start"
) -> str:
    look = f'font-size="{size}" font-weight="{weight}" fill="{color}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(text)}</text>'
