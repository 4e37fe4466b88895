"""The settings as a list, made from `Settings` itself, so that none is left out."""

from __future__ import annotations

from pydantic import BaseModel, SecretStr

from carehook.cli.output import format_value
from carehook.config import Settings
from carehook.logs import MASK


class SettingView(BaseModel):
    """One setting: its environment variable, its value now (secrets are masked) and by default, what it means."""

    variable: str
    value: str
    default: str
    description: str


def list_settings(settings: Settings) -> list[SettingView]:
    """Every setting in the order of `Settings`."""
    return [
        SettingView(
            variable=f"CAREHOOK_{name.upper()}",
            value=_format(getattr(settings, name)),
            default=_format(field.default),
            description=field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]


def _format(value: object) -> str:
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, tuple):
        return ",".join(f"{each:g}" if isinstance(each, float) else str(each) for each in value) or "-"
    if isinstance(value, bool):
        return str(value).lower()
    return format_value(value)
