"""A command's time with the store: opened for one piece of work, beside whatever service runs on it, and closed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from carehook.cli.output import say

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel

    from carehook.application import Application
    from carehook.config import Settings

Result = TypeVar("Result")
Model = TypeVar("Model", bound="BaseModel")


def run(work: Callable[[Application], Awaitable[Result]]) -> Result:
    """The result of `work` on the store that the settings name.

    Raises whatever `work` raises, and what `open_carehook` and `load_settings` do where Carehook cannot start.
    """
    from carehook.bootstrap import open_carehook
    from carehook.config import load_settings

    settings = load_settings()
    log_to_stderr("debug" if settings.log_level == "debug" else "warning")
    new_store = find_new_store(settings)

    async def work_on_the_store() -> Result:
        async with open_carehook(settings, needs_queue=False) as application:
            tell_of_new_store(new_store)
            return await work(application)

    return asyncio.run(work_on_the_store())


def log_to_stderr(level: str) -> None:
    """Log for people where standard error is a terminal, and as JSON elsewhere."""
    from carehook.cli.output import open_console
    from carehook.logs import configure_logs

    is_terminal = sys.stderr.isatty()
    colors = is_terminal and not open_console(stderr=True).no_color
    configure_logs(level, sys.stderr.buffer, for_people=is_terminal, colors=colors)


def build_model(model: type[Model], **fields: object) -> Model:
    """A model from what was given on the command line. Raises `Invalid`, which names the field."""
    from pydantic import ValidationError

    from carehook.directory.authentication import AUTHENTICATION_TYPES
    from carehook.refusals import build_invalid_model

    try:
        return model.model_validate(fields)
    except ValidationError as error:
        refusal = build_invalid_model(error, AUTHENTICATION_TYPES)
    raise refusal


def find_new_store(settings: Settings) -> Path | None:
    """The file of the embedded store, where opening it makes it."""
    from carehook.bootstrap import find_embedded_file

    file = find_embedded_file(settings)
    return None if file is None or file.exists() else file


def tell_of_new_store(file: Path | None) -> None:
    """Say that a store was made, if one was: in the wrong folder, an empty list would mislead."""
    if file is not None:
        say(f"There was no store yet; this made one: {file} (CAREHOOK_HOME chooses the folder).")
