"""What the command line says of settings and exit codes is what is so."""

from __future__ import annotations

from pathlib import Path

from carehook.cli.failures import ExitCode
from carehook.config import Settings
from carehook.logs import MASK
from tests.servers.installation import Installation

DATABASE = "sqlite:////nowhere/with-a-password.db"


def test_every_setting_is_listed_with_its_meaning(tmp_path: Path) -> None:
    listed = Installation(tmp_path).read("settings")["data"]
    assert [each["variable"] for each in listed] == [f"CAREHOOK_{name.upper()}" for name in Settings.model_fields]
    assert [each["variable"] for each in listed if not each["description"]] == []


def test_a_setting_is_shown_as_it_is_now_and_a_secret_masked(tmp_path: Path) -> None:
    done = Installation(tmp_path).run("settings", CAREHOOK_DATABASE_URL=DATABASE, CAREHOOK_RETRY_SCHEDULE="1, 2.5")
    values = {line.split("\t")[0]: line.split("\t")[1] for line in done.stdout.splitlines()[1:]}
    assert values["CAREHOOK_ALLOW_HTTP"] == "true"
    assert values["CAREHOOK_RETRY_SCHEDULE"] == "1,2.5"
    assert values["CAREHOOK_DATABASE_URL"] == MASK
    assert "password" not in done.stdout


def test_the_help_of_each_running_command_says_where_settings_are_listed(tmp_path: Path) -> None:
    for command in ("serve", "worker", "migrate"):
        assert "carehook settings" in Installation(tmp_path).run(command, "--help").stdout


def test_the_help_tells_the_exit_codes(tmp_path: Path) -> None:
    help_text = " ".join(Installation(tmp_path).run("--help").stdout.split())
    sentence = help_text[help_text.index("Exit codes:") :]
    assert [str(code.value) in sentence for code in ExitCode] == [True] * 4
