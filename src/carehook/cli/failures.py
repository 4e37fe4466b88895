"""From an exception to the one sentence that a person reads, and the exit code that a script does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import IntEnum
from typing import Final


class ExitCode(IntEnum):
    """What every command's exit code means."""

    OK = 0
    FAILED = 1
    """Refused or failed: what was asked for breaks a rule, names nothing, or did not come about."""
    USAGE = 2
    """The command line itself is wrong. (Given by typer.)"""
    CANNOT_START = 3
    """The settings, the store, the encryption key or the port do not let Carehook start, or do what was asked for."""


EXIT_CODES_HELP = (
    "Exit codes: 0 done; 1 refused or failed; 2 the command line is wrong; "
    "3 cannot be done with these settings, store, key or port."
)

_SERVICES: Final = frozenset({"serve", "api", "worker"})
"""The commands that start something which then runs."""


class CommandFailed(Exception):
    """A command that did not bring about what it was asked for; the message is a sentence for people."""


def report_failure(error: Exception, arguments: Sequence[str] = ()) -> ExitCode:
    """Say on standard error what is wrong, and tell the exit code. `arguments` are those of the command line."""
    code, sentence = describe_failure(error, starts=bool(_SERVICES.intersection(arguments[:1])))
    print(sentence, file=sys.stderr)
    if _is_debugging():
        from carehook.logs import describe_exception

        print(describe_exception(None, "error", {"exc_info": error})["exception"], file=sys.stderr)
    return code


def describe_failure(error: Exception, *, starts: bool) -> tuple[ExitCode, str]:
    """The exit code for an exception and the sentence about it, without anything that was in a field.

    `starts` tells whether what failed was the start of a service, or a command that does one thing.
    """
    from carehook.bootstrap import StartupError
    from carehook.cli.bench.processes import BenchmarkFailed
    from carehook.config import InvalidSettings
    from carehook.events import InvalidEvent
    from carehook.keyring import KeyringError
    from carehook.ledger.port import LedgerUnavailable
    from carehook.refusals import Refusal

    if isinstance(error, InvalidSettings | StartupError | LedgerUnavailable | KeyringError):
        what = "start" if starts else "do this"
        return ExitCode.CANNOT_START, f"Carehook cannot {what}: {build_sentence(str(error))}"
    if isinstance(error, Refusal | InvalidEvent | CommandFailed | BenchmarkFailed):
        return ExitCode.FAILED, build_sentence(str(error))
    # Its words are a library's, which may repeat the data that it failed on.
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    return ExitCode.FAILED, f"Carehook failed ({kind}). With CAREHOOK_LOG_LEVEL=debug it says where."


def build_sentence(text: str) -> str:
    """`text` on one line, with a full stop at its end."""
    line = " ".join(text.split())
    return line if line.endswith((".", "!", "?")) else f"{line}."


def _is_debugging() -> bool:
    from carehook.config import InvalidSettings, load_settings

    try:
        return load_settings().log_level == "debug"
    except InvalidSettings:
        return False
