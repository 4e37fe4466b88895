"""Settings: the only reader of the environment. Every one is named `CAREHOOK_…` and documented in the README."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Network = IPv4Network | IPv6Network
LogLevel = Literal["debug", "info", "warning", "error"]

PREFIX: Final = "CAREHOOK_"

DEFAULT_RETRY_SCHEDULE = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
"""Seconds before each retry: 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h."""


class InvalidSettings(Exception):
    """Settings that cannot be used: one sentence for each that names the variable and the rule."""


class Settings(BaseSettings):
    """What can be set, with its default. Lists are comma-separated."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True)

    home: Path = Field(
        Path("carehook-data"), description="The folder of the embedded database and of the encryption key."
    )
    host: str = Field("127.0.0.1", description="The address that the API listens on.")
    port: int = Field(8080, ge=0, le=65535, description="The port that the API listens on; 0 takes a free one.")
    worker_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="The port on which a `carehook worker` answers `/healthz`, `/readyz` and `/metrics`, and the next "
        "ones for its further processes; none by default.",
    )
    database_url: SecretStr | None = Field(
        None, description="`postgresql://…` or `sqlite:///…`; the embedded database in the home folder by default."
    )
    queue_url: SecretStr | None = Field(
        None,
        description="`nats://…` or `tls://…`, several separated by commas: NATS JetStream, by which workers tell each "
        "other what is due; the database alone by default.",
    )
    encryption_key: SecretStr | None = Field(
        None, description="32 bytes in base64 that seal stored secrets; a file in the home folder by default."
    )
    allowed_networks: Annotated[tuple[Network, ...], NoDecode] = Field(
        (), description="Networks that endpoints may lie in though they are not public, such as `10.20.0.0/16`."
    )
    allow_http: bool = Field(False, description="Whether endpoints may have plain http URLs.")
    ca_file: Path | None = Field(
        None,
        description="Certificates (PEM) of authorities to trust beside the public ones, for endpoints and the queue.",
    )
    retry_schedule: Annotated[tuple[float, ...], NoDecode] = Field(
        DEFAULT_RETRY_SCHEDULE, min_length=1, description="Seconds before each retry, each ±20 %."
    )
    concurrency: int = Field(1024, ge=1, le=10_000, description="Requests in flight at most, for a worker.")
    endpoint_concurrency: int = Field(
        64, ge=1, le=1_000, description="Requests in flight at most to one endpoint, for a worker."
    )
    drain_notice: float = Field(
        2,
        ge=0,
        le=300,
        description="Seconds after SIGTERM in which `/readyz` says 503 while requests are still taken, so that load "
        "balancers turn away first.",
    )
    log_level: LogLevel = Field(
        "info", description="What is logged: `debug`, `info` (a line an attempt), `warning` or `error`."
    )

    @field_validator("allowed_networks", mode="before")
    @classmethod
    def _read_networks(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(_read_network(part.strip()) for part in value.split(",") if part.strip())

    @field_validator("retry_schedule", mode="before")
    @classmethod
    def _read_schedule(cls, value: object) -> object:
        return tuple(_read_delay(part) for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("retry_schedule")
    @classmethod
    def _check_schedule(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < delay <= 604_800 for delay in value):
            raise ValueError("each delay lies between 0 and 604800 seconds (a week)")
        return value


def load_settings(**overrides: Any) -> Settings:
    """The settings from the environment, with `overrides` first. Raises InvalidSettings, for people."""
    if objections := list(find_objections(os.environ)):
        raise InvalidSettings(" ".join(objections))
    try:
        return Settings(**overrides)
    except ValidationError as error:
        details = error.errors(include_input=False, include_url=False)
    raise InvalidSettings(" ".join(_describe(detail) for detail in details))


def find_objections(environment: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each variable of ours that names no setting, or is empty.

    Both are mistakes that would otherwise go unseen: with a misspelt or empty `CAREHOOK_DATABASE_URL`, events would
    be kept in another store than the one that was meant.
    """
    for name, value in environment.items():
        if not name.upper().startswith(PREFIX):
            continue
        setting = name.lower().removeprefix(PREFIX.lower())
        if setting not in Settings.model_fields:
            nearest = get_close_matches(setting, Settings.model_fields, n=1)
            yield f"{name} is not a setting; " + (f"is {PREFIX}{nearest[0].upper()} meant?" if nearest else "unset it.")
        elif not value.strip():
            yield f"{name} is empty; give it a value or unset it."


def _read_delay(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        # Without a cause: its words are Python's, for who wrote the program.
        raise ValueError("write seconds, separated by commas, such as 5,300,1800") from None


def _read_network(text: str) -> Network:
    try:
        network = ip_network(text)
    except ValueError as error:
        raise ValueError(f"{error}; write networks as 10.20.0.0/16, separated by commas") from None
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise ValueError(f"{text} is IPv4-mapped; write it as the IPv4 network, which covers the mapped form too")
    return network


def _describe(detail: Any) -> str:
    name = "_".join(str(part) for part in detail["loc"][:1]).upper()
    return f"{PREFIX}{name}: {detail['msg'].removeprefix('Value error, ')}."
