"""What the command line looks like on a terminal, seen through a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess

import pytest

from carehook.cli.output import build_printable
from tests.servers.installation import COMMAND, Installation

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def carehook(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("carehook"))


@pytest.fixture(scope="module")
def organization_id(carehook: Installation) -> str:
    created = carehook.read("org", "create", "Example Hospital [bold]")
    carehook.run("endpoint", "create", created["id"], "http://127.0.0.1:9/a/rather/long/path/to/receive/webhooks")
    identifier: str = created["id"]
    return identifier


def run_on_a_terminal(carehook: Installation, *arguments: str, **environment: str) -> str:
    """What a person sees on a terminal of 60 columns."""
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            [COMMAND, *arguments],
            env={**carehook.environment, "TERM": "xterm-256color", "COLUMNS": "60", **environment},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        seen = b"".join(iter(lambda: _read(master), b""))
        assert process.wait(60) == 0, seen
    finally:
        os.close(master)
    return seen.decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other side is closed (EIO on Linux)
        return b""


def test_a_table_has_colours_and_no_id_is_cut_however_narrow_the_terminal(
    carehook: Installation, organization_id: str
) -> None:
    seen = run_on_a_terminal(carehook, "endpoint", "list", organization_id)
    assert "\x1b[32mactive" in seen
    (line,) = [line for line in ESCAPE.sub("", seen).splitlines() if "active" in line]
    assert re.search(r"\bep_[0-9a-z]{26,}\b", line)
    assert "/a/rather/long/path/to/receive/webhooks" in line


def test_no_color_is_respected(carehook: Installation, organization_id: str) -> None:
    seen = run_on_a_terminal(carehook, "endpoint", "list", organization_id, NO_COLOR="1")
    assert "active" in seen
    assert re.search(r"\x1b\[3\d", seen) is None


def test_markup_in_a_name_is_shown_as_it_is(carehook: Installation, organization_id: str) -> None:
    assert "Example Hospital [bold]" in run_on_a_terminal(carehook, "org", "show", organization_id)


def test_json_is_json_on_a_terminal_too(carehook: Installation, organization_id: str) -> None:
    seen = run_on_a_terminal(carehook, "org", "show", organization_id, "--json")
    assert seen.startswith("{\n")
    assert "\x1b" not in seen


def test_deleting_asks_a_person_first(carehook: Installation, organization_id: str) -> None:
    endpoint_id = carehook.read("endpoint", "list", organization_id)["data"][0]["id"]
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            [COMMAND, "endpoint", "delete", endpoint_id],
            env=dict(carehook.environment),
            stdin=slave,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(slave)
        os.write(master, b"n\n")
        assert process.wait(60) == 1
    finally:
        os.close(master)
    assert carehook.read("endpoint", "show", endpoint_id)["status"] == "active"


@pytest.mark.parametrize(
    ("text", "printable"),
    [
        ("Grüße – 你好", "Grüße – 你好"),
        ("a\tb\r\nc", "a b  c"),
        ("\x1b[31mred\x07\x9b2J", "\ufffd[31mred\ufffd\ufffd2J"),
        ("right\u202eto left", "right\ufffdto left"),
    ],
)
def test_what_is_printed_is_one_line_without_control_characters(text: str, printable: str) -> None:
    assert build_printable(text) == printable
