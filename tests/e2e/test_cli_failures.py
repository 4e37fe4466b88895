"""From whatever went wrong to one sentence and a code."""

from __future__ import annotations

from pathlib import Path

import pytest

from carehook.bootstrap import StartupError
from carehook.cli.failures import CommandFailed, ExitCode, describe_failure, report_failure
from carehook.config import InvalidSettings
from carehook.events import FieldError, InvalidEvent
from carehook.keyring import WrongKeyError
from carehook.ledger.port import LedgerUnavailable
from carehook.refusals import Conflict
from tests.servers.installation import Installation

LEAK = "the-patient-has-a-rash"


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (Conflict("The delivery is cancelled already."), ExitCode.FAILED, "The delivery is cancelled already."),
        (InvalidEvent([FieldError("type", "is required")]), ExitCode.FAILED, "type is required."),
        (CommandFailed("on line 3,\n  type is required"), ExitCode.FAILED, "on line 3, type is required."),
    ],
)
def test_each_kind_of_failure_has_its_code_and_one_sentence(error: Exception, code: ExitCode, sentence: str) -> None:
    assert describe_failure(error, starts=True) == describe_failure(error, starts=False) == (code, sentence)


@pytest.mark.parametrize("kind", [StartupError, InvalidSettings, LedgerUnavailable, WrongKeyError])
def test_what_keeps_carehook_from_working_is_told_of_a_start_or_of_a_command(kind: type[Exception]) -> None:
    assert describe_failure(kind("no"), starts=True) == (ExitCode.CANNOT_START, "Carehook cannot start: no.")
    assert describe_failure(kind("no"), starts=False) == (ExitCode.CANNOT_START, "Carehook cannot do this: no.")


def fail() -> None:
    raise RuntimeError(LEAK)


@pytest.mark.parametrize(("level", "says_where"), [("info", False), ("debug", True)])
def test_a_bug_is_told_without_the_data_it_met_and_on_request_with_its_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], level: str, says_where: bool
) -> None:
    monkeypatch.setenv("CAREHOOK_LOG_LEVEL", level)
    with pytest.raises(RuntimeError) as caught:
        fail()
    assert report_failure(caught.value) == ExitCode.FAILED
    told = capsys.readouterr().err
    assert "Carehook failed (builtins.RuntimeError)" in told
    assert ("in fail" in told) is says_where
    assert LEAK not in told


def test_a_new_store_is_told_of_once_it_is_there_and_not_where_it_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    failed = Installation(tmp_path).run("org", "list", code=3, CAREHOOK_HOME=str(tmp_path / "file"))
    (sentence,) = failed.stderr.splitlines()
    assert sentence.startswith("Carehook cannot do this: CAREHOOK_HOME: ")
    made, found = (Installation(tmp_path).run("org", "list").stderr for _ in range(2))
    assert made.startswith(f"There was no store yet; this made one: {tmp_path / 'home' / 'carehook.db'} ")
    assert found == ""


def test_migrating_tells_of_a_store_that_it_made(tmp_path: Path) -> None:
    made, found = (Installation(tmp_path).run("migrate").stderr.splitlines() for _ in range(2))
    assert made[0].startswith(f"There was no store yet; this made one: {tmp_path / 'home' / 'carehook.db'} ")
    assert made[1:] == found == ["The store has this version's schema."]


@pytest.mark.parametrize("url", ["postgresql://nobody:open-sesame@127.0.0.1:1/nothing", "mysql://127.0.0.1/nothing"])
@pytest.mark.parametrize("command", [("org", "list"), ("token", "create", "--role", "operator"), ("migrate",)])
def test_a_store_that_cannot_be_used_is_code_3_and_its_password_is_not_shown(
    tmp_path: Path, url: str, command: tuple[str, ...]
) -> None:
    done = Installation(tmp_path).run(*command, code=3, CAREHOOK_DATABASE_URL=url)
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("Carehook cannot do this: ")
    assert "open-sesame" not in sentence
