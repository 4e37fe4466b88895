"""`carehook demo`, as somebody sees it who runs Carehook for the first time, and what its verdict is worth."""

from __future__ import annotations

import dataclasses
import http.client
import json
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from carehook import Webhook
from carehook.cli.demo.receiver import Arrival
from carehook.cli.demo.run import run_demo
from carehook.cli.demo.story import HISTORY, PRESCRIPTIONS, REPORTS, Expected, build_finished_payload
from carehook.cli.demo.verdict import Delivery, find_faults
from carehook.cli.failures import CommandFailed
from carehook.events import CATALOGUE, build_body
from carehook.signature import generate_signing_secret
from tests.servers.installation import COMMAND, Installation, is_alive

# ---------------------------------------------------------------- as it is run


def test_once_shows_all_that_arrived_and_exits_0(tmp_path: Path) -> None:
    done = Installation(tmp_path).run("demo", "--once", TMPDIR=str(tmp_path))
    arrived = re.findall(r"arrived (evt_\w+) (\w+), verified", done.stdout)
    types = [event_type for _, event_type in dict(arrived).items()]
    assert sorted(types) == ["patient_consultation_finished"] * 2 + ["patient_report_sent"] * 3
    assert len(arrived) == 6, "one arrives twice, since its receiver failed once"
    assert len(re.findall(r"dlv_\w+ .* succeeded ", done.stdout)) == 5
    assert len(re.findall(r"500 in \d+ ms, then 204 in \d+ ms", done.stdout)) == 1
    assert "All 5 events arrived and were verified" in done.stdout
    assert (done.stderr, "\x1b" in done.stdout) == ("", False)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_settings_of_another_installation_do_not_reach_the_demo(tmp_path: Path) -> None:
    carehook = Installation(tmp_path, CAREHOOK_DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing")
    carehook.run("demo", "--once", TMPDIR=str(tmp_path), CAREHOOK_ALLOW_HTTP="false")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_without_once_it_stays_and_says_where_to_look(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [COMMAND, "demo"], env={"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            shown = ""
            while "carehook delivery list" not in shown:
                line = process.stdout.readline()
                assert line, shown
                shown += line
            found = re.search(r"curl -H 'Authorization: (Bearer \S+)' (http://\S+/deliveries)", shown)
            assert found is not None
            assert len(_get(found[2], found[1])["data"]) == 5
            (store,) = tmp_path.glob("carehook-demo-*/store")
            processes = _find_processes(store)
            assert len(processes) == 1
            process.send_signal(number)
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert [pid for pid in processes if is_alive(pid)] == []
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def _get(url: str, authorization: str) -> Any:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    try:
        connection.request("GET", parts.path, headers={"authorization": authorization})
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def _find_processes(store: Path) -> list[int]:
    """The processes whose store lies there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if f"CAREHOOK_HOME={store}".encode() in environment:
            found.append(int(path.parent.name))
    return found


def test_a_receiver_that_cannot_verify_fails_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    def build_webhook(signature_value: str, _signing_secret: str) -> Webhook:
        return Webhook(signature_value, generate_signing_secret())

    with pytest.raises(CommandFailed, match="was not verified") as refusal:
        run_demo(once=True, build_webhook=build_webhook)
    for event_type in CATALOGUE:
        assert f"{event_type} (example) did not arrive" in str(refusal.value)
    assert "All 5 events" not in capsys.readouterr().out


# ---------------------------------------------------------------- what its verdict is worth

EXAMPLE = CATALOGUE["patient_report_sent"]
BODY = build_body(EXAMPLE.model.model_validate(EXAMPLE.example))
EXPECTED = Expected("evt_1", "patient_report_sent", "example", EXAMPLE.example["payload"], BODY)
FAILED = Arrival("evt_1", BODY, EXAMPLE.model.model_validate_json(BODY), None, 500)
ARRIVED = dataclasses.replace(FAILED, status=204)
DELIVERY: Delivery = {"state": "succeeded", "attempts": [{}, {}]}


def change(**fields: Any) -> Arrival:
    return dataclasses.replace(ARRIVED, **fields)


def build_other_event() -> Any:
    other = CATALOGUE["patient_consultation_finished"]
    return other.model.model_validate(other.example)


def test_no_fault_is_found_where_all_is_well() -> None:
    assert find_faults([EXPECTED], [FAILED, ARRIVED], {"evt_1": [DELIVERY]}) == []


@pytest.mark.parametrize(
    ("arrivals", "deliveries", "fault"),
    [
        ([], [DELIVERY], "did not arrive"),
        ([FAILED], [DELIVERY], "did not arrive"),
        ([FAILED, ARRIVED, change(event=None, refusal="signature")], [DELIVERY], "was not verified: signature"),
        ([FAILED, ARRIVED, change(webhook_id="evt_2")], [DELIVERY], "nobody had told of it"),
        ([FAILED, change(event=build_other_event())], [DELIVERY], "another type"),
        ([FAILED, change(body=BODY.replace(b"plan", b"idea"))], [DELIVERY], "another payload"),
        ([FAILED, change(body=BODY + b" ")], [DELIVERY], "the same bytes on every attempt"),
        ([change(body=BODY + b" ", status=500), change(body=BODY + b" ")], [DELIVERY], "other bytes than the contract"),
        ([FAILED, ARRIVED], [], "one delivery that succeeded"),
        ([FAILED, ARRIVED], [{**DELIVERY, "state": "exhausted"}], "one delivery that succeeded"),
        ([FAILED, ARRIVED], [DELIVERY, DELIVERY], "one delivery that succeeded"),
        ([FAILED, ARRIVED], [{**DELIVERY, "attempts": [{}]}], "arrived 2 times in 1 attempts"),
        ([ARRIVED], [{**DELIVERY, "attempts": [{}]}], "no retry was seen"),
    ],
)
def test_each_fault_is_found(arrivals: Sequence[Arrival], deliveries: Sequence[Delivery], fault: str) -> None:
    faults = find_faults([EXPECTED], arrivals, {"evt_1": deliveries})
    assert [each for each in faults if fault in each] != []


def test_the_story_has_all_that_a_consultation_has() -> None:
    assert (len(REPORTS), len(PRESCRIPTIONS)) == (2, 2)
    assert sorted(HISTORY) == ["allergies", "diseases", "medications"]
    event = {"type": "patient_consultation_finished", "occurred_on": 1704063600, "payload": build_finished_payload()}
    model = CATALOGUE["patient_consultation_finished"].model
    assert json.loads(build_body(model.model_validate_json(json.dumps(event)))) == event
