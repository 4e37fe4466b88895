"""Settings come from the environment or are refused in a sentence that names the variable and shows no secret."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from carehook.config import InvalidSettings, Settings, load_settings


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("CAREHOOK_"):
            monkeypatch.delenv(name)


def load(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(f"CAREHOOK_{name}", value)
    return load_settings()


def test_the_defaults() -> None:
    settings = load_settings()
    assert settings.home == Path("carehook-data")
    assert settings.port == 8080
    assert settings.host == "127.0.0.1"
    assert settings.worker_port is None
    assert settings.drain_notice == 2
    assert (settings.database_url, settings.queue_url, settings.encryption_key, settings.ca_file) == (None,) * 4
    assert settings.allowed_networks == ()
    assert settings.allow_http is False
    assert settings.retry_schedule == (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)


GIVEN: dict[str, tuple[str, Any]] = {
    "HOME": ("/srv/carehook", Path("/srv/carehook")),
    "HOST": ("0.0.0.0", "0.0.0.0"),
    "PORT": ("0", 0),
    "WORKER_PORT": ("9000", 9000),
    "DATABASE_URL": ("postgresql://u:p@host/db", "postgresql://u:p@host/db"),
    "QUEUE_URL": ("nats://u:p@host:4222", "nats://u:p@host:4222"),
    "ENCRYPTION_KEY": ("a2V5", "a2V5"),
    "ALLOWED_NETWORKS": ("10.0.0.0/8, ::1 ,", (ip_network("10.0.0.0/8"), ip_network("::1"))),
    "ALLOW_HTTP": ("true", True),
    "CA_FILE": ("/srv/ca.pem", Path("/srv/ca.pem")),
    "RETRY_SCHEDULE": ("0.5, 60", (0.5, 60.0)),
    "CONCURRENCY": ("10", 10),
    "ENDPOINT_CONCURRENCY": ("2", 2),
    "DRAIN_NOTICE": ("0.5", 0.5),
    "LOG_LEVEL": ("debug", "debug"),
}


@pytest.mark.parametrize("name", GIVEN)
def test_each_setting_comes_from_its_variable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    text, expected = GIVEN[name]
    value = getattr(load(monkeypatch, **{name: text}), name.lower())
    assert (value.get_secret_value() if hasattr(value, "get_secret_value") else value) == expected


def test_no_setting_is_left_out_of_these_tests() -> None:
    assert {name.upper() for name in Settings.model_fields} == set(GIVEN)


def test_what_is_given_in_code_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAREHOOK_PORT", "1")
    assert load_settings(port=2).port == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PORT", "http"),
        ("PORT", "65536"),
        ("PORT", "tcp://10.0.0.1:8080"),
        ("WORKER_PORT", "65536"),
        ("DRAIN_NOTICE", "-1"),
        ("DRAIN_NOTICE", "nan"),
        ("ALLOW_HTTP", "perhaps"),
        ("ALLOWED_NETWORKS", "10.0.0.1/8"),
        ("ALLOWED_NETWORKS", "internal"),
        ("ALLOWED_NETWORKS", "::ffff:10.0.0.0/104"),
        ("RETRY_SCHEDULE", "5,,300"),
        ("RETRY_SCHEDULE", "5;300"),
        ("RETRY_SCHEDULE", "0"),
        ("RETRY_SCHEDULE", "-5"),
        ("RETRY_SCHEDULE", "nan"),
        ("RETRY_SCHEDULE", "inf"),
        ("RETRY_SCHEDULE", "604801"),
        ("CONCURRENCY", "0"),
        ("ENDPOINT_CONCURRENCY", "1001"),
        ("LOG_LEVEL", "loud"),
        *((name, " ") for name in GIVEN),
        *((name, "") for name in GIVEN),
    ],
)
def test_what_cannot_be_used_is_refused_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    with pytest.raises(InvalidSettings, match=rf"^CAREHOOK_{name}\b") as raised:
        load(monkeypatch, **{name: text})
    assert str(raised.value).endswith(".")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["a", "a,b", "5,,300", "5;300", "5,", ","])
def test_a_schedule_that_cannot_be_read_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    with pytest.raises(InvalidSettings) as raised:
        load(monkeypatch, RETRY_SCHEDULE=text)
    sentence = "CAREHOOK_RETRY_SCHEDULE: write seconds, separated by commas, such as 5,300,1800."
    assert str(raised.value) == sentence


def test_everything_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidSettings) as raised:
        load(monkeypatch, PORT="x", ALLOW_HTTP="perhaps")
    assert "CAREHOOK_PORT" in str(raised.value)
    assert "CAREHOOK_ALLOW_HTTP" in str(raised.value)


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("RETRY_SCHEDUL", "CAREHOOK_RETRY_SCHEDULE"),
        ("DB_URL", "CAREHOOK_DATABASE_URL"),
        ("DATABASE", "CAREHOOK_DATABASE_URL"),
        ("ALLOWED_NETWORK", "CAREHOOK_ALLOWED_NETWORKS"),
        ("ENCRYPTION_KEYS", "CAREHOOK_ENCRYPTION_KEY"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_one_that_is_meant(
    monkeypatch: pytest.MonkeyPatch, misspelt: str, meant: str
) -> None:
    with pytest.raises(InvalidSettings, match=f"^CAREHOOK_{misspelt} is not a setting; is {meant} meant") as raised:
        load(monkeypatch, **{misspelt: "hunter2"})
    assert "hunter2" not in str(raised.value)


def test_a_variable_like_no_setting_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidSettings, match="CAREHOOK_XYZZY is not a setting; unset it"):
        load(monkeypatch, XYZZY="1")


def test_the_variables_of_others_are_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAREHOOKS_PORT", "x")
    monkeypatch.setenv("MY_CAREHOOK_PORT", "x")
    assert load_settings().port == 8080


def test_settings_do_not_show_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch,
        DATABASE_URL="postgresql://u:hunter2@host/db",
        QUEUE_URL="nats://u:hunter4@host",
        ENCRYPTION_KEY="hunter3",
    )
    for shown in (repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())):
        assert "hunter" not in shown


def test_a_refusal_keeps_nothing_of_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAREHOOK_DATABASE_URL", "postgresql://u:hunter2@host/db")
    with pytest.raises(InvalidSettings) as raised:
        load(monkeypatch, PORT="hunter3")
    assert "hunter" not in str(raised.value)
    assert raised.value.__context__ is None
