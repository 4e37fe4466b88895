"""Logs: what a line holds, and what can never be in one."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from pydantic import BaseModel, SecretStr, ValidationError
from structlog.testing import capture_logs

from carehook.logs import MASK, configure_logs, describe_exception, log_all, mask
from carehook.refusals import NotFound

LEAK = "the-patient-has-a-rash"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """After each test, logging is as it was."""
    handlers, level = logging.root.handlers[:], logging.root.level
    logging.root.handlers.clear()
    yield
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def stream() -> io.BytesIO:
    """What is logged, as JSON, from the level info on."""
    stream = io.BytesIO()
    configure_logs("info", stream)
    return stream


def read(stream: io.BytesIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_says_what_when_how_bad_and_where(stream: io.BytesIO) -> None:
    structlog.get_logger("carehook.attempt").info("attempt", delivery_id="dlv_1", duration_ms=1.5, reason=None)
    (line,) = read(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "attempt",
        "level": "info",
        "logger": "carehook.attempt",
        "delivery_id": "dlv_1",
        "duration_ms": 1.5,
        "reason": None,
    }


def test_many_lines_at_once_are_as_if_each_had_been_logged(stream: io.BytesIO) -> None:
    fields: list[dict[str, Any]] = [
        {"delivery_id": "dlv_1", "duration_ms": 1.5},
        {"delivery_id": "dlv_2", "client_secret": LEAK},
    ]
    log_all("carehook.attempt", "attempt", [dict(each) for each in fields])
    for each in fields:
        structlog.get_logger("carehook.attempt").info("attempt", **each)
    lines = read(stream)
    assert all(line.pop("timestamp").endswith("Z") for line in lines)
    assert lines[:2] == lines[2:]
    assert lines[1]["client_secret"] == MASK


def test_many_lines_at_once_are_one_write_and_none_below_the_level() -> None:
    class Counting(io.BytesIO):
        writes = 0

        def write(self, data: Any) -> int:
            self.writes += 1
            return super().write(data)

    configure_logs("info", stream := Counting())
    log_all("carehook.attempt", "attempt", [{"attempt": number} for number in range(100)])
    assert (stream.writes, len(read(stream))) == (1, 100)
    configure_logs("warning", stream := Counting())
    log_all("carehook.attempt", "attempt", [{"attempt": 1}])
    assert stream.writes == 0


def test_many_lines_at_once_are_captured_and_shown_to_people_too() -> None:
    with capture_logs() as logs:
        log_all("carehook.attempt", "attempt", [{"attempt": 1}, {"attempt": 2}])
    assert [(each["event"], each["attempt"], each["log_level"]) for each in logs] == [
        ("attempt", 1, "info"),
        ("attempt", 2, "info"),
    ]
    stream = io.BytesIO()
    configure_logs("info", stream, for_people=True)
    log_all("carehook.attempt", "attempt", [{"attempt": 1, "token": LEAK}])
    assert "attempt=1" in stream.getvalue().decode()
    assert LEAK not in stream.getvalue().decode()


def test_what_is_below_the_level_is_not_logged(stream: io.BytesIO) -> None:
    structlog.get_logger().debug("a detail")
    logging.getLogger("uvicorn.error").info("Started server process")
    assert read(stream) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"authorization": LEAK},
        {"Authorization": LEAK},
        {"client_secret": LEAK},
        {"clientSecret": LEAK},
        {"signing_secrets": [LEAK]},
        {"webhook-signature": LEAK},
        {"body": LEAK},
        {"response_body": LEAK.encode()},
        {"payload": {"patient": LEAK}},
        {"token": LEAK},
        {"password": LEAK},
        {"response_excerpt": LEAK},
        {"anything": SecretStr(LEAK)},
        {"anything": LEAK.encode()},
        {"anything": memoryview(LEAK.encode())},
        {"anything": [{"deep": (SecretStr(LEAK), {"token": LEAK})}]},
        {"anything": {"headers": {"authorization": LEAK}}},
    ],
)
def test_secrets_and_payloads_are_masked_wherever_they_are(stream: io.BytesIO, fields: dict[str, object]) -> None:
    structlog.get_logger().info("something", **fields)
    assert LEAK not in stream.getvalue().decode()
    assert MASK in stream.getvalue().decode()


def test_ids_are_shown_though_they_are_named_after_secrets() -> None:
    event = {"event": "revoked", "token_id": "tok_1", "encryption_key_id": "0a1b"}
    assert mask(None, "info", dict(event)) == event


def test_an_error_shows_where_it_went_and_carehooks_own_words(stream: io.BytesIO) -> None:
    try:
        raise NotFound("There is no event 'evt_1'.")
    except NotFound:
        structlog.get_logger().exception("failed")
    (line,) = read(stream)
    assert line["level"] == "error"
    assert line["exception"].startswith("carehook.refusals.NotFound: There is no event 'evt_1'.\n")
    assert "in test_an_error_shows_where_it_went" in line["exception"]


def test_an_error_of_the_system_keeps_its_words() -> None:
    event = describe_exception(None, "error", {"exc_info": ConnectionResetError(104, "Connection reset by peer")})
    assert "Connection reset by peer" in event["exception"]


class Model(BaseModel):
    number: int


def fail_on_a_payload() -> None:
    try:
        Model.model_validate({"number": LEAK})
    except ValidationError as error:
        raise RuntimeError(LEAK) from error


def test_a_librarys_error_is_shown_without_its_words(stream: io.BytesIO) -> None:
    try:
        fail_on_a_payload()
    except RuntimeError:
        structlog.get_logger().exception("failed")
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")
        logging.getLogger("asyncio").error(f"Task exception was never retrieved\nfuture: {LEAK}")
    lines = read(stream)
    assert LEAK not in stream.getvalue().decode()
    assert [line["event"] for line in lines] == [
        "failed",
        "Exception in ASGI application",
        "Task exception was never retrieved",
    ]
    assert [line["logger"] for line in lines] == ["carehook", "uvicorn.error", "asyncio"]
    for line in lines[:2]:
        assert "pydantic_core._pydantic_core.ValidationError" in line["exception"], "the cause is named"
        assert "builtins.RuntimeError" in line["exception"]
        assert "in fail_on_a_payload" in line["exception"]


def test_a_stream_that_is_gone_does_not_stop_the_work(stream: io.BytesIO) -> None:
    log = structlog.get_logger()
    log.info("before")
    stream.close()
    log.info("after")
    assert stream.closed


def test_lines_for_people_are_no_json_and_mask_too() -> None:
    stream = io.BytesIO()
    configure_logs("info", stream, for_people=True)
    structlog.get_logger("carehook.attempt").info("attempt", delivery_id="dlv_1", token=LEAK)
    text = stream.getvalue().decode()
    assert "delivery_id=dlv_1" in text
    assert MASK in text
    assert LEAK not in text
    assert "\x1b[" not in text
