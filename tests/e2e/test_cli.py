"""The commands of the store, as people and scripts call them, beside a running service."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from carehook import Webhook
from carehook.directory.authentication import MASK
from carehook.events import CATALOGUE
from tests.receivers import Answer, RecordingReceiver
from tests.servers.installation import Installation, Service, eventually

REPORT = json.dumps(CATALOGUE["patient_report_sent"].example)
FINISHED = json.dumps(CATALOGUE["patient_consultation_finished"].example)


@dataclass(frozen=True, slots=True)
class World:
    """A running service, and an organization of its own for each test."""

    carehook: Installation
    service: Service

    def create_organization(self) -> str:
        created = self.service.call("POST", "/v1/organizations", {"name": "Example Hospital"})
        organization_id: str = created.body["id"]
        return organization_id

    def create_endpoint(self, organization_id: str, url: str, **fields: object) -> Any:
        created = self.service.call("POST", f"/v1/organizations/{organization_id}/endpoints", {"url": url, **fields})
        assert created.status == 201, created
        return created.body

    def wait_for_success(self, event_id: str) -> Any:
        return self._wait_for_delivery(event_id, "state", "succeeded")

    def wait_for_attempts(self, event_id: str, count: int) -> Any:
        return self._wait_for_delivery(event_id, "attempt_count", count)

    def _wait_for_delivery(self, event_id: str, name: str, value: object) -> Any:
        def look() -> Any:
            (delivery,) = self.service.call("GET", f"/v1/events/{event_id}").body["deliveries"]
            return delivery if delivery[name] == value else None

        return eventually(look, f"delivery with {name} {value}")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    carehook = Installation(tmp_path_factory.mktemp("carehook"), CAREHOOK_RETRY_SCHEDULE="600")
    with carehook.start() as service:
        yield World(carehook, service)


@pytest.fixture
def receiver() -> Iterator[RecordingReceiver]:
    with RecordingReceiver() as receiver:
        yield receiver


# ---------------------------------------------------------------- organizations, and how lists are shown


def test_an_organization_is_registered_and_shown_with_the_values_of_the_api(world: World) -> None:
    created = world.carehook.read("org", "create", "Example Hospital")
    assert created == world.service.call("GET", f"/v1/organizations/{created['id']}").body
    assert created == world.carehook.read("org", "show", created["id"])


def test_a_table_that_is_piped_is_plain_and_whole(world: World) -> None:
    organization_id = world.create_organization()
    done = world.carehook.run("org", "list", "--limit", "1")
    header, line = done.stdout.splitlines()
    assert header.split("\t") == ["id", "name", "created_at"]
    assert line.split("\t")[:2] == [organization_id, "Example Hospital"]
    assert "\x1b" not in done.stdout


def test_a_list_goes_on_at_its_cursor(world: World) -> None:
    older, newer = world.create_organization(), world.create_organization()
    first = world.carehook.read("org", "list", "--limit", "1")
    second = world.carehook.read("org", "list", "--limit", "1", "--cursor", first["next_cursor"])
    assert [each["id"] for each in first["data"] + second["data"]] == [newer, older]


def test_a_cursor_is_the_one_of_the_api(world: World) -> None:
    older, newer = world.create_organization(), world.create_organization()
    told = world.carehook.run("org", "list", "--limit", "1").stderr.split()[-1]
    answered = world.service.call("GET", "/v1/organizations?limit=1").body["next_cursor"]
    printed = world.carehook.read("org", "list", "--limit", "1")["next_cursor"]
    assert told == printed == answered
    assert newer.removeprefix("org_") not in printed
    following = world.carehook.read("org", "list", "--limit", "1", "--cursor", answered)
    assert [each["id"] for each in following["data"]] == [older]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--event-type", "nope"),
        ("--endpoint", "nope"),
        ("--endpoint", f"evt_{'0' * 12}7{'0' * 3}8{'0' * 15}"),
        ("--event", "nope"),
        ("--cursor", "garbage"),
        ("--cursor", f"dlv_{'0' * 12}7{'0' * 3}8{'0' * 15}"),
    ],
)
def test_a_wrong_filter_is_refused_and_not_answered_with_an_empty_list(world: World, option: str, value: str) -> None:
    done = world.carehook.run("delivery", "list", world.create_organization(), option, value, code=2)
    assert option in done.stderr
    assert " must be " in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("kind", ["org", "token", "event", "endpoint"])
def test_a_wrong_cursor_is_refused_by_every_list(world: World, kind: str) -> None:
    of = [world.create_organization()] if kind in ("event", "endpoint") else []
    done = world.carehook.run(kind, "list", *of, "--cursor", "garbage", code=2)
    assert "must be the next_cursor of a list" in done.stderr


def test_a_strangers_text_cannot_take_over_a_line_or_a_terminal(world: World) -> None:
    with RecordingReceiver(then=Answer(500, body=b"\x1b[2J\x07out\tof\norder")) as failing:
        organization_id = world.create_organization()
        world.create_endpoint(organization_id, failing.url)
        event_id = world.carehook.run("event", "publish", organization_id, stdin=REPORT).stdout.strip()
        delivery = world.wait_for_attempts(event_id, 1)
    shown = world.carehook.run("delivery", "show", delivery["id"]).stdout
    assert shown.endswith("\n\ufffd[2J\ufffdout of order\n")


# ---------------------------------------------------------------- endpoints and their secrets


def test_an_endpoints_secrets_are_shown_once_and_verify(world: World, receiver: RecordingReceiver) -> None:
    organization_id = world.create_organization()
    created = world.carehook.read("endpoint", "create", organization_id, receiver.url)
    event_id = world.carehook.run("event", "publish", organization_id, stdin=REPORT).stdout.strip()
    world.wait_for_success(event_id)
    webhook = Webhook(created["signature_value"], created["signing_secret"])
    assert webhook.verify(receiver.requests[0].body, receiver.requests[0].headers).type == "patient_report_sent"

    shown = world.carehook.read("endpoint", "show", created["id"])
    assert shown == world.service.call("GET", f"/v1/endpoints/{created['id']}").body
    assert shown["signature_value"] == MASK
    assert "signing_secret" not in shown


def test_secrets_come_from_files_and_standard_input(world: World, receiver: RecordingReceiver, tmp_path: Path) -> None:
    organization_id = world.create_organization()
    value = tmp_path / "value"
    value.write_text("agreed-with-support\n")
    created = world.carehook.run(
        *("endpoint", "create", organization_id, receiver.url),
        *("--signature-value-file", str(value), "--authentication", "-", "--event-type", "patient_report_sent"),
        stdin='{"type": "basic", "username": "carehook", "password": "open-sesame"}',
    )
    assert "open-sesame" not in created.stdout + created.stderr
    assert MASK in created.stdout
    world.carehook.run("event", "publish", organization_id, stdin=FINISHED)
    event_id = world.carehook.run("event", "publish", organization_id, stdin=REPORT).stdout.strip()
    world.wait_for_success(event_id)
    (request,) = receiver.requests
    assert request.headers["x-webhook-signature"] == "agreed-with-support"
    assert request.headers["authorization"] == "Basic Y2FyZWhvb2s6b3Blbi1zZXNhbWU="


def test_a_refused_authentication_is_named_as_its_sender_knows_it(world: World) -> None:
    document = json.dumps({"type": "basic", "username": "carehook", "password": MASK})
    command = ("endpoint", "create", world.create_organization(), "http://127.0.0.1:9/", "--authentication", "-")
    done = world.carehook.run(*command, stdin=document, code=1)
    rule = "must not be the mask that is shown in place of a secret; give the secret itself."
    assert done.stderr == f"authentication.password {rule}\n"


def test_an_authentication_that_is_no_json_is_not_repeated(world: World) -> None:
    organization_id = world.create_organization()
    done = world.carehook.run(
        *("endpoint", "create", organization_id, "http://127.0.0.1:9/", "--authentication", "-"),
        stdin="open-sesame",
        code=2,
    )
    assert "not JSON" in done.stderr
    assert "open-sesame" not in done.stderr


def test_an_endpoint_lives(world: World, receiver: RecordingReceiver) -> None:
    organization_id = world.create_organization()
    endpoint_id = world.create_endpoint(organization_id, receiver.url)["id"]
    command = world.carehook

    assert command.read("endpoint", "pause", endpoint_id)["status"] == "paused"
    held = command.read("event", "publish", organization_id, stdin=REPORT)
    assert held["deliveries"] == 1
    assert command.read("delivery", "list", organization_id, "--state", "held")["data"][0]["event_id"] == held["id"]
    assert command.read("endpoint", "resume", endpoint_id)["status"] == "active"
    world.wait_for_success(held["id"])

    changed = command.read(
        "endpoint", "update", endpoint_id, "--description", "New", "--event-type", "patient_report_sent"
    )
    assert (changed["description"], changed["event_types"]) == ("New", ["patient_report_sent"])
    assert command.read("endpoint", "update", endpoint_id, "--all-event-types")["event_types"] == []
    assert command.read("endpoint", "rotate-secret", endpoint_id, "--overlap", "0")["signing_secret"].startswith(
        "whsec_"
    )

    sent = command.read("endpoint", "test", endpoint_id, "--event-type", "patient_consultation_finished")
    assert world.wait_for_success(sent["event_id"])["id"] == sent["delivery_id"]

    refused = command.run("endpoint", "delete", endpoint_id, code=2)
    assert "--yes" in refused.stderr
    assert command.read("endpoint", "show", endpoint_id)["status"] != "deleted"
    command.run("endpoint", "delete", endpoint_id, "--yes")
    assert command.read("endpoint", "list", organization_id)["data"] == []


def test_limits_and_order_are_given_changed_and_taken_away(world: World) -> None:
    def read_limits(endpoint: Any) -> tuple[Any, ...]:
        return endpoint["max_in_flight"], endpoint["rate_limit"], endpoint["ordering"]

    command = world.carehook
    options = ("--max-in-flight", "3", "--rate-limit", "0.5", "--ordering", "patient")
    created = command.read("endpoint", "create", world.create_organization(), "http://127.0.0.1:9/", *options)
    assert read_limits(created) == (3, 0.5, "patient")
    update = ("endpoint", "update", created["id"])
    assert read_limits(command.read(*update, "--max-in-flight", "7")) == (7, 0.5, "patient")
    assert read_limits(command.read(*update, "--no-max-in-flight")) == (None, 0.5, "patient")
    changed = command.read(*update, "--no-rate-limit", "--ordering", "none")
    assert read_limits(changed) == (None, None, "none")
    assert command.read("endpoint", "show", created["id"]) == changed


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--max-in-flight", "0"), 1, "max_in_flight must be at least 1."),
        (("--rate-limit", "nan"), 1, "rate_limit must be"),
        (("--ordering", "event"), 2, "--ordering"),
        (("--max-in-flight", "5", "--no-max-in-flight"), 2, "give the limit"),
        (("--rate-limit", "5", "--no-rate-limit"), 2, "give the limit"),
    ],
)
def test_a_limit_that_is_none_is_refused(world: World, options: tuple[str, ...], code: int, words: str) -> None:
    endpoint = world.create_endpoint(world.create_organization(), "http://127.0.0.1:9/")
    done = world.carehook.run("endpoint", "update", endpoint["id"], *options, code=code)
    assert words in done.stderr
    assert world.carehook.read("endpoint", "show", endpoint["id"])["updated_at"] == endpoint["updated_at"]


def test_what_a_delivery_waits_for_and_how_it_goes_at_its_endpoint_are_told_in_words(world: World) -> None:
    organization_id = world.create_organization()
    with RecordingReceiver(500) as receiver:
        endpoint_id = world.create_endpoint(organization_id, receiver.url)["id"]
        event_id = world.carehook.read("event", "publish", organization_id, stdin=REPORT)["id"]
        delivery_id = world.wait_for_attempts(event_id, 1)["id"]
    failing = "circuit\tclosed, with 1 failure, the last: the endpoint answered 500\n"
    assert failing in world.carehook.run("endpoint", "show", endpoint_id).stdout
    assert "waits_for\tThe next attempt is due at 2" in world.carehook.run("delivery", "show", delivery_id).stdout
    for command, column, word in (
        (("endpoint", "list", organization_id), "circuit", "closed"),
        (("delivery", "list", organization_id), "waits_for", "schedule"),
    ):
        header, line = (text.split("\t") for text in world.carehook.run(*command).stdout.splitlines())
        assert line[header.index(column)] == word
    world.carehook.run("endpoint", "pause", endpoint_id)
    paused = "waits_for\tThe endpoint is paused. Resume it to go on.\n"
    assert paused in world.carehook.run("delivery", "show", delivery_id).stdout


def test_what_failed_since_an_hour_is_recovered(world: World) -> None:
    organization_id = world.create_organization()
    with RecordingReceiver(500) as receiver:
        endpoint_id = world.create_endpoint(organization_id, receiver.url)["id"]
        event_id = world.carehook.read("event", "publish", organization_id, stdin=REPORT)["id"]
        world.wait_for_attempts(event_id, 1)
        assert world.carehook.read("endpoint", "recover", endpoint_id, "--since", "1h") == {"deliveries": 1}
        world.wait_for_success(event_id)
    assert world.carehook.read("endpoint", "recover", endpoint_id, "--since", "2024-01-01") == {"deliveries": 0}


# ---------------------------------------------------------------- events


def test_an_event_published_here_is_delivered_by_the_running_service(
    world: World, receiver: RecordingReceiver, tmp_path: Path
) -> None:
    organization_id = world.create_organization()
    world.create_endpoint(organization_id, receiver.url)
    file = tmp_path / "event.json"
    file.write_text(REPORT)
    event_id = world.carehook.run("event", "publish", organization_id, str(file)).stdout.strip()
    delivery = world.wait_for_success(event_id)
    assert json.loads(receiver.requests[0].body) == json.loads(REPORT)
    assert world.carehook.read("event", "show", event_id) == world.service.call("GET", f"/v1/events/{event_id}").body
    shown = world.carehook.run("event", "show", event_id).stdout
    assert "payload" not in shown
    assert delivery["id"] in shown


def test_a_batch_is_accepted_wholly_or_not_at_all(world: World) -> None:
    organization_id = world.create_organization()
    events = [json.loads(REPORT), json.loads(FINISHED)]
    accepted = world.carehook.read("event", "publish", organization_id, stdin=json.dumps({"events": events}))
    listed = world.carehook.read("event", "list", organization_id)
    assert {each["id"] for each in listed["data"]} == set(accepted["ids"])
    assert listed == world.service.call("GET", f"/v1/organizations/{organization_id}/events").body

    bad = json.dumps({"events": [*events, {**events[0], "occurred_on": "yesterday"}]})
    done = world.carehook.run("event", "publish", organization_id, stdin=bad, code=1)
    assert "events.2.occurred_on" in done.stderr
    assert world.carehook.read("event", "list", organization_id) == listed


def test_a_file_of_lines_is_accepted_in_parts_after_all_of_it_was_checked(world: World) -> None:
    organization_id = world.create_organization()
    lines = [REPORT] * 1001
    bad = world.carehook.run(
        "event", "publish", organization_id, "--lines", stdin="\n".join([*lines, '{"type": "unheard_of"}']), code=1
    )
    assert "on line 1002" in bad.stderr
    assert world.carehook.read("event", "list", organization_id)["data"] == []

    again = ("event", "publish", organization_id, "--lines", "--idempotency-key", "import-1")
    first = world.carehook.read(*again, stdin="\n".join(lines))
    assert len(set(first["ids"])) == 1001
    assert world.carehook.read(*again, stdin="\n".join(lines)) == first


def test_a_delivery_is_cancelled_retried_and_its_event_sent_again(world: World) -> None:
    organization_id = world.create_organization()
    with RecordingReceiver(500, 500) as receiver:
        world.create_endpoint(organization_id, receiver.url)
        event_id = world.carehook.read("event", "publish", organization_id, stdin=REPORT)["id"]
        delivery_id = world.wait_for_attempts(event_id, 1)["id"]
        assert world.carehook.read("delivery", "cancel", delivery_id)["state"] == "cancelled"
        again = world.carehook.run("delivery", "cancel", delivery_id, code=1)
        assert again.stderr == "The delivery is cancelled already.\n"
        assert world.carehook.read("delivery", "retry", delivery_id)["state"] == "pending"
        world.wait_for_attempts(event_id, 2)
        assert world.carehook.read("event", "resend", event_id) == {"deliveries": 1}
        world.wait_for_success(event_id)
    shown = world.carehook.read("delivery", "show", delivery_id)
    assert [each["status_code"] for each in shown["attempts"]] == [500, 500, 200]
    assert shown == world.service.call("GET", f"/v1/deliveries/{delivery_id}").body


# ---------------------------------------------------------------- tokens


def test_a_token_stands_alone_on_the_last_line_and_is_good_until_it_is_revoked(world: World) -> None:
    organization_id = world.create_organization()
    done = world.carehook.run("token", "create", "--role", "publisher", "--organization", organization_id)
    token = done.stdout.splitlines()[-1]
    path = f"/v1/organizations/{organization_id}/events"
    assert world.service.call("POST", path, json.loads(REPORT), token=token).status == 202

    listed = world.carehook.read("token", "list")["data"][0]
    assert (listed["role"], listed["organization_id"]) == ("publisher", organization_id)
    assert token not in json.dumps(listed)
    world.carehook.run("token", "revoke", listed["id"])
    eventually(lambda: world.service.call("POST", path, json.loads(REPORT), token=token).status == 401, "refusal")


def test_a_publishers_token_needs_an_organization(world: World) -> None:
    done = world.carehook.run("token", "create", "--role", "publisher", code=1)
    assert done.stdout == ""
    assert done.stderr.startswith("organization_id is required")


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (("endpoint", "pause", "ep_unknown"), "There is no endpoint 'ep_unknown'.\n"),
        (("delivery", "show", "dlv_unknown", "--json"), "There is no delivery 'dlv_unknown'.\n"),
        (("token", "revoke", "tok_unknown"), "There is no token that is in use 'tok_unknown'.\n"),
    ],
)
def test_an_unknown_id_is_one_sentence_and_code_1(world: World, command: tuple[str, ...], sentence: str) -> None:
    done = world.carehook.run(*command, code=1)
    assert (done.stdout, done.stderr) == ("", sentence)


def test_what_breaks_the_contract_is_named_without_what_it_held(world: World) -> None:
    organization_id = world.create_organization()
    event = json.loads(REPORT)
    event["payload"]["patient"]["diagnosis"] = "a-rash"
    done = world.carehook.run("event", "publish", organization_id, stdin=json.dumps(event), code=1)
    assert done.stderr == "payload.patient.diagnosis is not a field of the contract.\n"


@pytest.mark.parametrize(
    "command",
    [
        ("organise",),
        ("delivery", "list", "org_1", "--state", "lost"),
        ("event", "publish", "org_1", "no-such-file"),
        ("endpoint", "update", "ep_1"),
        ("endpoint", "recover", "ep_1", "--since", "yesterday"),
        ("serve", "--port", "65536"),
    ],
)
def test_a_wrong_command_line_is_code_2(world: World, command: tuple[str, ...]) -> None:
    done = world.carehook.run(*command, code=2)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_help_and_version_import_nothing_heavy() -> None:
    for option in ("--help", "--version"):
        command = [sys.executable, "-X", "importtime", "-m", "carehook.cli", option]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        heavy = {"sqlalchemy", "fastapi", "uvicorn", "structlog", "pyreqwest", "pydantic_settings", "alembic"}
        imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
        assert "carehook" in imported
        assert imported & heavy == set()
