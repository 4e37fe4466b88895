"""The parts of `carehook bench` that decide: what is wanted, what a figure is shown as, and how it is drawn."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest

from carehook.cli.bench.bodies import BodySize, build_batch, build_event
from carehook.cli.bench.command import Request, build_plan
from carehook.cli.bench.keeping import build_name
from carehook.cli.bench.load import pick_percentile, run_at_rate, run_callers
from carehook.cli.bench.measured import (
    DELIVERED,
    DELIVERED_TLS,
    TARGETS,
    WORKER_MEMORY,
    Measured,
    find_target,
    name_share,
)
from carehook.cli.bench.plot import BARS_LEFT, BARS_WIDTH, PANELS, build_plot
from carehook.cli.bench.receiver import Behaviour, Receipts, read_behaviour
from carehook.cli.bench.report import CeilingFigure, Figure, Machine, Report, SetupRun, build_figures
from carehook.cli.bench.run import Plan
from carehook.cli.bench.scenarios import SCENARIOS, backlog, history
from carehook.cli.bench.setups import SETUPS, Servers
from carehook.cli.bench.table import build_cell, build_cost_lines, build_figure_lines
from carehook.cli.bench.usage import LOAD, OTHERS, CpuMeter, find_family, find_parent, read_peak_memory
from carehook.events import parse_event
from carehook.events.codec import parse_events

_SVG = "{http://www.w3.org/2000/svg}"
_CEILINGS = [CeilingFigure(name="2 KB", before=20_000, after=30_000, cpu_us=35)]


def build_report(figures: list[Figure]) -> Report:
    return Report(
        carehook="1.2.3",
        measured_at=datetime(2026, 11, 22, 14, 30, tzinfo=UTC),
        seconds=900,
        scale=1,
        workers=1,
        machine=Machine(
            processor="Fast <& Co> CPU",
            cores=2,
            memory_gib=23.5,
            system="Linux 6",
            python="3.11.7",
            load_average=0.1,
            fsync_ms=0.2,
        ),
        setups=[SetupRun(name=setup.name, title=setup.title, store="a store") for setup in SETUPS],
        ceilings=_CEILINGS,
        figures=figures,
    )


def build_figure(setup: str, value: float, target: float | None = None, *, is_met: bool | None = None) -> Figure:
    return Figure(
        scenario="deliver",
        setup=setup,
        name=DELIVERED,
        value=value,
        unit="deliveries/s",
        target=target,
        is_met=is_met,
    )


@pytest.mark.parametrize(
    ("size", "length"), [(BodySize.SMALL, 1_000), (BodySize.USUAL, 2_219), (BodySize.LARGE, 20_000)]
)
def test_an_event_has_its_size_and_keeps_the_contract(size: BodySize, length: int) -> None:
    event = build_event(size)

    assert len(event) == length
    assert parse_event(event).type in ("patient_report_sent", "patient_consultation_finished")


def test_a_batch_holds_as_many_events_as_asked_for() -> None:
    assert len(parse_events(build_batch(BodySize.SMALL, 7))) == 7


def test_a_target_holds_on_the_setups_that_it_is_meant_for() -> None:
    wanted = {setup.name: find_target(DELIVERED, setup.name) for setup in SETUPS}

    assert {name: target.value if target else None for name, target in wanted.items()} == {
        "embedded": 4_000,
        "postgresql": 6_000,
        "postgresql-apart": 6_000,
        "jetstream": None,
    }


def test_a_target_names_setups_that_there_are() -> None:
    named = {setup for targets in TARGETS.values() for target in targets for setup in target.setups}

    assert named <= {setup.name for setup in SETUPS}


def test_a_rate_is_followed_by_its_share_of_the_mean_of_its_ceiling() -> None:
    rate, share = build_figures(
        "deliver", "postgresql", [Measured(DELIVERED, 5_000, "deliveries/s", ceiling="2 KB")], _CEILINGS, 1
    )

    assert (rate.value, rate.target, rate.is_met) == (5_000, 6_000, False)
    assert (share.name, share.value, share.target, share.is_met) == (name_share(DELIVERED), 0.2, 0.25, False)


def test_a_share_is_of_the_ceiling_with_tls_for_what_was_sent_with_tls() -> None:
    tls = CeilingFigure(name="2 KB, TLS", before=10_000, after=10_000, cpu_us=35)
    measured = [Measured(DELIVERED_TLS, 2_500, "deliveries/s", ceiling=tls.name)]

    _, share = build_figures("deliver-tls", "postgresql", measured, [*_CEILINGS, tls], 1)

    assert (share.value, share.is_met) == (0.25, True)


@pytest.mark.parametrize(("megabytes", "is_met"), [(250, True), (250.1, False)])
def test_a_limit_is_met_up_to_its_value(megabytes: float, is_met: bool) -> None:
    (figure,) = build_figures("all", "jetstream", [Measured(WORKER_MEMORY, megabytes, "MB")], [], 1)

    assert (figure.is_limit, figure.is_met) == (True, is_met)


def test_a_tiny_run_judges_nothing() -> None:
    (figure,) = build_figures("all", "embedded", [Measured(WORKER_MEMORY, 1, "MB")], [], 0.09)

    assert (figure.target, figure.is_met) == (None, None)


def test_setups_stand_side_by_side() -> None:
    report = build_report([build_figure("embedded", 4_321.4, 4_000, is_met=True), build_figure("jetstream", 12.345)])

    _, line = build_figure_lines(report)

    assert line == [f"{DELIVERED}, deliveries/s", "4,321 (met: ≥ 4,000)", "", "", "12.35"]


def test_what_is_missed_is_said() -> None:
    figure = build_figure("embedded", 12.5, 10, is_met=False).model_copy(update={"is_limit": True})

    assert build_cell(figure) == "12.50 (missed: ≤ 10)"


def test_what_one_delivery_costs_is_told_by_role() -> None:
    figures = [
        build_figure("embedded", 2_000).model_copy(update={"cpu": {"serve": 0.75, "load": 0.2, "others": 0.5}}),
        build_figure("jetstream", 1_000).model_copy(update={"cpu": {"worker": 0.5, "postgresql": 0.25, "load": 0.1}}),
        build_figure("postgresql", 1),
    ]

    assert build_cost_lines(build_report(figures)) == [
        [
            "processor time for each, µs",
            "setup",
            "serve",
            "worker",
            "postgresql",
            "load",
            "others",
            "Carehook and store",
        ],
        [DELIVERED, "embedded", "375", "", "", "100", "250", "375"],
        [DELIVERED, "PostgreSQL + JetStream, api + worker", "", "500", "250", "100", "", "750"],
    ]


def test_a_share_of_the_time_is_no_cost_where_nothing_is_counted() -> None:
    latency = build_figure("embedded", 2.5).model_copy(update={"unit": "ms", "cpu": {"serve": 0.75}})

    assert len(build_cost_lines(build_report([latency]))) == 1


def test_bars_are_as_long_as_their_figures_say() -> None:
    drawing = ElementTree.fromstring(
        build_plot(build_report([build_figure("embedded", 1_000), build_figure("postgresql", 4_000)]))
    )

    bars = [rect for rect in drawing.iter(f"{_SVG}rect") if rect.get("x") == str(BARS_LEFT)]
    assert [float(bar.get("width", "")) for bar in bars] == [BARS_WIDTH / 4, BARS_WIDTH]


def test_a_tick_marks_what_is_wanted() -> None:
    drawing = build_plot(build_report([build_figure("embedded", 1_000, 2_000, is_met=False)]))

    assert f'd="M{BARS_LEFT + BARS_WIDTH:.1f} ' in drawing
    assert "missed: ≥ 2,000" in drawing


def test_the_machine_is_named_whatever_it_is_called() -> None:
    drawing = ElementTree.fromstring(build_plot(build_report([build_figure("embedded", 1_000)])))

    texts = "".join(drawing.itertext())
    assert "Fast <& Co> CPU, 2 cores, 24 GiB" in texts
    assert "1,000" in texts


def test_a_figure_is_in_one_panel_at_most() -> None:
    figure = build_figure("embedded", 1)
    units = [("deliver", "deliveries/s"), ("accept", "events/s"), ("hanging", "ms"), ("latency-200", "ms")]

    for scenario, unit in [*units, ("one-to-1000", "s"), ("backlog", "ms"), ("history", "ms"), ("all of them", "MB")]:
        shown = figure.model_copy(update={"scenario": scenario, "unit": unit})
        assert [panel.holds(shown) for panel in PANELS].count(True) == 1, scenario


def test_a_result_is_named_by_when_and_where() -> None:
    assert build_name(build_report([])) == "2026-11-22-1430-fast-co-cpu-2-cores"


def test_a_path_says_how_it_is_answered() -> None:
    ok = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    down = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"

    assert read_behaviour(b"/0/200/name") == Behaviour(0, ok)
    assert read_behaviour(b"/50/503/name") == Behaviour(0.05, down)
    assert read_behaviour(b"/never/200/name") == Behaviour(0, None)


def test_a_repetition_counts_as_a_request_and_not_as_a_delivery() -> None:
    receipts = Receipts()
    for key, instant in ((b"/a 1", 10), (b"/b 1", 20), (b"/a 1", 30)):
        receipts.note(key, instant)

    assert json.loads(receipts.answer(b"GET /progress ")) == {"requests": 3, "different": 2, "last": 20}
    assert json.loads(receipts.answer(b"GET /receipts ")) == {"/a 1": 10, "/b 1": 20}


def test_it_forgets_when_told_to() -> None:
    receipts = Receipts()
    receipts.note(b"/a 1", 10)
    receipts.answer(b"POST /reset ")

    assert json.loads(receipts.answer(b"GET /progress ")) == {"requests": 0, "different": 0, "last": 0}


@pytest.mark.parametrize(("share", "value"), [(0.5, 51), (0.99, 100), (0, 1)])
def test_percentiles_are_values_that_were_measured(share: float, value: float) -> None:
    assert pick_percentile(list(range(100, 0, -1)), share) == value


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    begun, answer = [], asyncio.Event()

    async def act() -> None:
        begun.append(1)
        if len(begun) == 5:
            answer.set()
        await answer.wait()

    async with asyncio.timeout(30):
        await run_at_rate(act, 5, 1_000)

    assert len(begun) == 5


async def test_callers_act_as_often_as_asked_and_no_more_at_once_than_they_are() -> None:
    acts, at_once, most = 0, 0, 0

    async def act() -> None:
        nonlocal acts, at_once, most
        acts, at_once = acts + 1, at_once + 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1

    await run_callers(act, 100, 7)

    assert (acts, most) == (100, 7)


def test_a_family_is_a_process_and_all_that_descend_from_it() -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        family = find_family(child.pid)
        child.communicate(b"\n")

    assert len(family) == 2
    assert family[0] == child.pid


def test_processor_time_is_counted_by_role() -> None:
    meter = CpuMeter({})
    sum(range(10_000_000))

    shares = meter.read()
    assert set(shares) == {LOAD, OTHERS}
    assert shares[LOAD] > 0


def test_a_parent_is_found_by_who_its_child_is() -> None:
    program = Path("/proc/self/comm").read_text().strip()

    assert find_parent(os.getpid(), program) == os.getppid()
    assert find_parent(os.getpid(), "postgres") is None
    assert find_parent(2**22 + 1, program) is None


def test_a_process_that_has_ended_holds_no_memory() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()

    assert read_peak_memory(child.pid) == 0


def test_each_has_a_name_of_its_own() -> None:
    names = [scenario.name for scenario in SCENARIOS] + [backlog.NAME, history.NAME]

    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("largest", "scale", "sizes"),
    [
        (1_000_000, 1, [10_000, 100_000, 1_000_000]),
        (5_000_000, 1, [10_000, 100_000, 1_000_000, 5_000_000]),
        (1_000_000, 0.1, [10_000, 100_000]),
        (1_000_000, 100, [10_000, 100_000, 1_000_000]),
    ],
)
def test_backlogs_grow_up_to_the_largest_that_was_asked_for(largest: int, scale: float, sizes: list[int]) -> None:
    assert backlog.choose_sizes(largest, scale) == sizes


@pytest.mark.parametrize(
    ("scale", "sizes"), [(1, [10_000, 100_000, 1_000_000]), (0.1, [10_000, 100_000]), (0.001, [10_000])]
)
def test_histories_grow_with_the_scale(scale: float, sizes: list[int]) -> None:
    assert history.choose_sizes(scale) == sizes


def test_all_is_planned_for_which_there_are_servers() -> None:
    plan = build_plan(Request(database_url="postgresql://user@host/name"))

    assert [setup.name for setup in plan.setups] == ["embedded", "postgresql", "postgresql-apart"]
    assert list(plan.scenarios) == list(SCENARIOS)
    assert plan.backlogs == [10_000, 100_000, 1_000_000]
    assert plan.histories == [10_000, 100_000, 1_000_000]


def test_servers_are_found_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAREHOOK_DATABASE_URL", "postgresql://user@host/name")
    monkeypatch.setenv("CAREHOOK_QUEUE_URL", "nats://host")

    assert [setup.name for setup in build_plan(Request()).setups] == [setup.name for setup in SETUPS]


def test_a_file_of_somebodys_is_not_measured_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAREHOOK_DATABASE_URL", "sqlite:////var/lib/carehook/carehook.db")

    plan = build_plan(Request())

    assert plan.servers.database is None
    assert [setup.name for setup in plan.setups] == ["embedded"]


def test_what_is_chosen_alone_is_planned() -> None:
    plan = build_plan(Request(only=["deliver-tls", "backlog"], largest_backlog=20_000))

    assert [scenario.name for scenario in plan.scenarios] == ["deliver-tls"]
    assert plan.backlogs == [10_000]
    assert plan.histories == ()
    assert [ceiling.name for ceiling in plan.ceilings] == ["2 KB", "2 KB, TLS"]


def test_what_decides_is_measured_on_every_setup() -> None:
    plan = Plan(SCENARIOS, SETUPS, Servers())
    chosen = {setup.name: {scenario.name for scenario in plan.choose(setup)} for setup in SETUPS}

    assert chosen["embedded"] == chosen["postgresql-apart"] == chosen["jetstream"]
    assert (
        {"deliver", "deliver-tls", "accept", "latency-500", "one-to-1000"} <= chosen["postgresql"] < chosen["jetstream"]
    )
