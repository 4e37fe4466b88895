"""What rots unseen in a repository: locks that drift, paths of one machine, commands that no longer start."""

import os
import re
import subprocess
import tomllib
from collections import defaultdict
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[2]
LOCKS = ("server", "test")
COMMANDS = ("run", "test", ".ci/run", "scripts/lock", "scripts/setup")

# Spelt so that this file does not match itself.
REGISTRIES = re.compile(r"pypi[.]org|pythonhoste[d]|npmjs[.]|index[-]url|crates[.]io|deb[.]debian[.]org")
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:work|root)/")

Pins = dict[str, list[Requirement]]


def list_tracked_files() -> list[Path]:
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    output = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    return [path for name in output.split("\0") if name and (path := REPOSITORY / name).is_file()]


def find_lines(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path.relative_to(REPOSITORY)}:{number}"
        for path in list_tracked_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if pattern.search(line)
    ]


def read_lock(name: str) -> Pins:
    """The pins of a lock by package; a package has several where they depend on the Python or platform."""
    pins: Pins = defaultdict(list)
    for block in re.split(r"\n(?=\S)", (REPOSITORY / f"requirements/{name}.txt").read_text()):
        requirement = Requirement(block.partition("\\\n")[0])
        pins[canonicalize_name(requirement.name)].append(requirement)
    return pins


def read_project() -> dict[str, list[Requirement]]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {name: [Requirement(line) for line in lines] for name, lines in groups.items()}


def read_wishes(name: str) -> list[Requirement]:
    lines = (REPOSITORY / f"requirements/{name}.in").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def find_unmet(wishes: list[Requirement], pins: Pins) -> list[str]:
    """The wishes that a lock does not hold, or holds in a version that was not asked for."""
    return [
        str(wish)
        for wish in wishes
        if not (held := pins.get(canonicalize_name(wish.name), []))
        or any(not wish.specifier.contains(str(pin.specifier).removeprefix("==")) for pin in held)
    ]


def test_no_file_names_a_registry() -> None:
    assert find_lines(REGISTRIES) == []


def test_no_file_holds_a_path_of_one_machine() -> None:
    assert find_lines(MACHINE_PATHS) == []


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_is_exact_and_hashed(lock: str) -> None:
    blocks = re.split(r"\n(?=\S)", (REPOSITORY / f"requirements/{lock}.txt").read_text())
    assert [block for block in blocks if not re.match(r"[\w.-]+==\S+", block) or "--hash=sha256:" not in block] == []


def test_the_server_lock_holds_what_the_server_needs() -> None:
    project = read_project()
    wishes = project[""] + project["server"] + read_wishes("server")
    assert find_unmet(wishes, read_lock("server")) == [], "run scripts/lock"


def test_the_test_lock_holds_what_the_tests_need() -> None:
    wishes = [wish for group in read_project().values() for wish in group]
    wishes += read_wishes("server") + read_wishes("test")
    assert find_unmet(wishes, read_lock("test")) == [], "run scripts/lock"


def test_the_tests_run_what_the_server_runs() -> None:
    server, test = read_lock("server"), read_lock("test")
    differing = {
        name
        for name, pins in server.items()
        if {str(pin.specifier) for pin in pins} != {str(pin.specifier) for pin in test.get(name, [])}
    }
    assert differing == set(), "run scripts/lock"


def test_the_build_backend_is_locked() -> None:
    build = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["build-system"]
    assert find_unmet([Requirement(line) for line in build["requires"]], read_lock("server")) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_strict_bash_and_executable(command: str) -> None:
    path = REPOSITORY / command
    assert os.access(path, os.X_OK)
    assert "\nset -euo pipefail\n" in path.read_text()
    subprocess.run(["bash", "-n", path], check=True)


def test_the_console_script_leads_somewhere() -> None:
    scripts = [script for script in entry_points(group="console_scripts") if script.name == "carehook"]
    assert [callable(script.load()) for script in scripts] == [True]


@pytest.mark.parametrize("command", ["./run", "./test"])
def test_the_readme_shows_the_two_commands(command: str) -> None:
    assert command in (REPOSITORY / "README.md").read_text()
