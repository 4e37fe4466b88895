"""What commands print: tables for people on a terminal, tab-separated lines when piped, or the API's JSON.

Laws: an id is never cut or broken, and a control character of a stranger's text never reaches the terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console, RenderableType

    from carehook.insights import ListView

_STYLES = {
    "active": "green",
    "cancelled": "dim",
    "disabled": "red",
    "circuit": "red",
    "exhausted": "red",
    "held": "cyan",
    "interrupted": "yellow",
    "open": "red",
    "blocked": "red",
    "paused": "yellow",
    "pending": "yellow",
    "succeeded": "green",
    "unreachable": "red",
}


_SPACES = str.maketrans("\t\r\n", "   ")


def say(sentence: str) -> None:
    """Tell the person at the terminal something that is not the result."""
    print(build_printable(sentence), file=sys.stderr)


def print_json(value: BaseModel | dict[str, Any]) -> None:
    """Print a view as the API answers it."""
    import orjson

    if isinstance(value, dict):
        print(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
    else:
        print(value.model_dump_json(indent=2))


def print_view(view: BaseModel, *, as_json: bool, without: Sequence[str] = ()) -> None:
    """Print one view, as JSON or without the fields that are shown otherwise."""
    if as_json:
        print_json(view)
    else:
        print_details(view, without=without)


def print_list(page: ListView[Any], columns: Sequence[str], *, as_json: bool) -> None:
    """Print part of a list, as JSON or as a table of some of its fields, and say how to see what follows."""
    from carehook.insights import build_list

    shown = build_list(page)
    if as_json:
        print_json(shown)
        return
    print_table(shown.data, columns)
    if shown.next_cursor is not None:
        say(f"There are more: --cursor {shown.next_cursor}")


def print_table(rows: Iterable[BaseModel], columns: Sequence[str]) -> None:
    """Print rows by the names of their fields: a table on a terminal, else a header and tab-separated lines."""
    lines = [[_format_cell(getattr(row, name)) for name in columns] for row in rows]
    if not sys.stdout.isatty():
        for line in [list(columns), *lines]:
            print("\t".join(line))
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(*(build_title(name) for name in columns), box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for line in lines:
        table.add_row(*(_style(value) for value in line))
    print_unbroken(open_console(), table)


def print_details(view: BaseModel, *, without: Sequence[str] = ()) -> None:
    """Print the fields of one view, a line each: name and value."""
    fields = [(name, format_value(getattr(view, name))) for name in type(view).model_fields if name not in without]
    if not sys.stdout.isatty():
        for name, value in fields:
            print(f"{name}\t{value}")
        return
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, value in fields:
        table.add_row(f"[bold]{build_title(name)}[/bold]", _style(value))
    print_unbroken(open_console(), table)


def print_heading(text: str) -> None:
    """Print what the next table shows, after an empty line."""
    print(f"\n{text}")


def format_value(value: object) -> str:
    """A value as people read it, on one line."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds").replace("+00:00", "Z")
    if isinstance(value, list | tuple):
        return ", ".join(format_value(each) for each in value) or "all"
    if (words := getattr(value, "in_words", None)) is not None:
        return build_printable(words)
    if hasattr(value, "model_dump"):
        return ", ".join(f"{name} {format_value(each)}" for name, each in value.model_dump(mode="json").items())
    return build_printable(str(value))


def _format_cell(value: object) -> str:
    """A value within a table, where there is room for a word."""
    word: str | None = getattr(value, "in_a_word", None)
    return format_value(value) if word is None else word


def build_printable(text: str) -> str:
    """`text` on one line and without control characters, which could take over a terminal."""
    spaced = text.translate(_SPACES)
    return spaced if spaced.isprintable() else "".join(each if each.isprintable() else "\ufffd" for each in spaced)


def build_title(name: str) -> str:
    """A field's name as a column's title."""
    return name.replace("_", " ")


def _style(value: str) -> RenderableType:
    from rich.text import Text

    return Text(value, style=_STYLES.get(value, ""))


def print_unbroken(console: Console, table: RenderableType) -> None:
    """Print a table as wide as it is; a narrower terminal breaks its lines, which can still be copied whole."""
    width = console.width
    console.width = 10_000
    console.width = max(width, console.measure(table).maximum)
    console.print(table)
    console.width = width


def open_console(*, stderr: bool = False) -> Console:
    """rich's console: colours on a terminal alone, and not with NO_COLOR."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)
