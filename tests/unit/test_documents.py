"""Documents that cannot lie: what they say of settings, states, rooms and commands is compared with the code."""

import re
from pathlib import Path

import pytest

import carehook
from bench import document
from carehook import metrics
from carehook.cli.bench.plot import build_plot
from carehook.cli.bench.setups import SETUPS
from carehook.config import Settings
from carehook.events import CATALOGUE
from carehook.ledger.states import TRANSITIONS

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BENCHMARKS = ROOT / "bench" / "README.md"
ARCHITECTURE = ROOT / "ARCHITECTURE.md"
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    BENCHMARKS,
]


def build_state_diagram() -> str:
    """The table of transitions as a Mermaid state diagram."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for state, leaving in TRANSITIONS.items():
        for transition, then in leaving.items():
            arrows.setdefault((state, then), []).append(transition)
    lines = [f"    {state} --> {then}: {', '.join(names)}" for (state, then), names in sorted(arrows.items())]
    return "\n".join(["stateDiagram-v2", *lines])


def test_the_state_diagram_is_the_table_of_transitions() -> None:
    diagrams = re.findall(r"```mermaid\n(stateDiagram.*?)\n```", ARCHITECTURE.read_text(), re.DOTALL)

    assert diagrams == [build_state_diagram()]


def test_the_readme_lists_every_setting_and_no_other() -> None:
    listed = re.findall(r"^\| `(CAREHOOK_[A-Z_]+)`", README.read_text(), re.MULTILINE)

    assert listed == [f"CAREHOOK_{name.upper()}" for name in Settings.model_fields]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_readme_says_of_a_setting_what_the_code_says(name: str) -> None:
    field = Settings.model_fields[name]
    (row,) = re.findall(rf"^\| `CAREHOOK_{name.upper()}` \| (.*?) \| (.*?) \|$", README.read_text(), re.MULTILINE)

    default, description = row
    assert default == describe_default(field.default)
    assert description == field.description


def describe_default(default: object) -> str:
    """A default as the README writes it."""
    match default:
        case None | ():
            return ""
        case bool():
            return f"`{str(default).lower()}`"
        case tuple():
            return f"`{','.join(f'{value:g}' for value in default)}`"
    return f"`{default}`"


def test_the_architecture_names_every_room() -> None:
    package = Path(carehook.__file__).parent
    rooms = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in package.iterdir()
        if (path.is_dir() and (path / "__init__.py").exists())
        or (path.suffix == ".py" and path.name not in ("__init__.py", "_version.py"))
    }
    named = set(re.findall(r"`([a-z_]+(?:/|\.py))`", ARCHITECTURE.read_text()))

    assert rooms <= named


def test_every_file_that_a_document_names_is_there() -> None:
    package = Path(carehook.__file__).parent
    missing = [
        f"{document.name}: {name}"
        for document in DOCUMENTS
        for name in re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.(?:py|md)|(?:[a-z_]+/)+)`", document.read_text())
        if not any((base / name).exists() for base in (ROOT, package)) and not list(package.rglob(name))
    ]

    assert missing == []


def test_every_setting_that_a_document_names_is_one() -> None:
    settings = {f"CAREHOOK_{name.upper()}" for name in Settings.model_fields}

    assert find_names(r"\bCAREHOOK_[A-Z_]+\b") - settings == set()


def test_every_metric_that_a_document_names_is_measured() -> None:
    source = Path(metrics.__file__).read_text()
    named = {name.removesuffix("_total") for name in find_names(r"\bcarehook_[a-z_]+_[a-z]+\b")}

    assert len(named) > 5
    assert {name for name in named if f'"{name}"' not in source} == set()


def find_names(pattern: str) -> set[str]:
    return {name for document in DOCUMENTS for name in re.findall(pattern, document.read_text())}


def test_the_readme_names_every_event_type() -> None:
    readme = README.read_text()

    assert [name for name in CATALOGUE if name not in readme] == []


@pytest.mark.parametrize(("name", "mark"), document.BLOCKS)
def test_what_a_document_says_was_measured_is_the_newest_result(name: str, mark: str) -> None:
    written = document.find_block((ROOT / name).read_text(), mark)

    assert written == document.BLOCKS[name, mark]()


def test_every_result_has_its_plot() -> None:
    for result in document.RESULTS.glob("*.json"):
        assert result.with_suffix(".svg").read_text() == build_plot(document.read_report(result))


def test_the_readme_of_benchmarks_names_every_setup() -> None:
    named = re.findall(r"^\| ([^|]+?) \| `?carehook|^\| ([^|]+?) \| the same", BENCHMARKS.read_text(), re.MULTILINE)

    assert [one or other for one, other in named] == [setup.title for setup in SETUPS]


def test_what_was_measured_is_replaced_and_nothing_else() -> None:
    readme = README.read_text()
    block = document.find_block(readme, "measured")

    replaced = document.replace_block(readme, "measured", "\nanything\n")

    assert document.find_block(replaced, "measured") == "\nanything\n"
    assert document.replace_block(replaced, "measured", block) == readme
