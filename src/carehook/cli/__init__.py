"""The command line, made for people: what is shown is a table on a terminal, plain when piped, JSON when asked for.

Laws:
- A result goes to standard output; what is said about it, and every error, to standard error.
- An error is one plain sentence. Exit codes are those of `carehook.cli.failures.ExitCode`.
- What a command needs is imported when it runs, so that `carehook --help` answers at once.
"""

import sys


def main() -> None:
    """Run the command that `sys.argv` names, and exit."""
    from carehook.cli.commands import app
    from carehook.cli.failures import report_failure

    try:
        app()
    except Exception as error:
        sys.exit(report_failure(error, sys.argv[1:]))
