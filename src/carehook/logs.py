"""Logs: one JSON object a line on standard error, or lines for people where that is a terminal.

Laws:
- No secret and no payload gets out. What is named like one is masked, and so is every `SecretStr` and all bytes,
  whoever logged it; of an exception only Carehook's own words and the system's are shown, since those of a library may
  repeat the data that it failed on.
- A log that cannot be written never stops what was being done.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import lru_cache
from threading import Lock
from typing import Any, BinaryIO, Final

import orjson
import structlog
from pydantic import SecretBytes, SecretStr
from structlog.typing import EventDict, Processor

from carehook.clock import utc_now

MASK: Final = "********"

_SENSITIVE: Final = (
    "authorization",
    "body",
    "cookie",
    "credential",
    "encryption_key",
    "excerpt",
    "passphrase",
    "password",
    "payload",
    "private_key",
    "secret",
    "signature",
    "token",
)
_PLAIN_TYPES: Final = frozenset({str, int, float, bool, type(None)})


def configure_logs(level: str, stream: BinaryIO, *, for_people: bool = False, colors: bool = False) -> None:
    """Send every log line of this process to `stream`: structlog's, and the standard library's from warnings on.

    Args:
        level: the least that is logged: debug, info, warning or error.
        stream: where lines go, each in one write.
        for_people: lines to be read on a terminal instead of JSON.
        colors: whether those are coloured.
    """
    render: Processor = structlog.dev.ConsoleRenderer(colors=colors) if for_people else _render_json
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _add_origin,
            _add_timestamp,
            mask,
            describe_exception,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_LineLoggers(stream),
        cache_logger_on_first_use=True,
    )
    least = max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()])
    logging.basicConfig(handlers=[_ToStructlog()], level=least, force=True)


def log_all(name: str, event: str, lines: Iterable[dict[str, Any]]) -> None:
    """Log an event once for each of `lines`, the fields of one each, at the level info and in one write.

    Each line is what `structlog.get_logger(name).info(event, **fields)` would make of it, by the same processors; all
    are of the same moment.
    """
    if not structlog.get_logger(name).bind().is_enabled_for(logging.INFO):
        return
    config = structlog.get_config()
    logger = config["logger_factory"](name)
    common = {"event": event, "_told_at": _build_timestamp()}
    rendered = [_render("info", common | fields, logger, config["processors"]) for fields in lines]
    shown = [line for line in rendered if line is not None]
    if isinstance(logger, _LineLogger):
        logger.write(shown)
        return
    for line in shown:
        logger.info(line)


def _render(method: str, event: EventDict, logger: Any, processors: Iterable[Processor]) -> Any:
    """What the processors make of one line, None where one of them drops it."""
    line: Any = event
    try:
        for process in processors:
            line = process(logger, method, line)
    except structlog.DropEvent:
        return None
    return line


class _LineLogger:
    """Writes what was rendered, a line at a time or many at once."""

    def __init__(self, name: str, stream: BinaryIO, lock: Lock) -> None:
        self.name = name
        self._stream = stream
        self._lock = lock

    def msg(self, message: str | bytes) -> None:
        """Write one line; one that cannot be written is given up."""
        self.write([message])

    def write(self, messages: Iterable[str | bytes]) -> None:
        """Write many lines at once; what cannot be written is given up."""
        lines = [each if isinstance(each, bytes) else each.encode("utf-8", "backslashreplace") for each in messages]
        try:
            with self._lock:
                self._stream.write(b"".join([line + b"\n" for line in lines]))
                self._stream.flush()
        except (OSError, ValueError):  # a full disk, a closed pipe, a closed file
            return

    debug = info = warning = warn = error = critical = fatal = exception = log = msg


class _LineLoggers:
    """Makes the loggers that `structlog.get_logger(name)` asks for, which share a stream."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = Lock()

    def __call__(self, name: str = "carehook", *_: object) -> _LineLogger:
        return _LineLogger(name, self._stream, self._lock)


def _add_origin(logger: _LineLogger, method: str, event: EventDict) -> EventDict:
    event["level"] = "error" if method == "exception" else method
    event["logger"] = event.pop("_origin", logger.name)
    return event


def _add_timestamp(_logger: object, _method: str, event: EventDict) -> EventDict:
    event["timestamp"] = event.pop("_told_at", None) or _build_timestamp()
    return event


def _build_timestamp() -> str:
    return utc_now().isoformat(timespec="microseconds").replace("+00:00", "Z")


def mask(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Mask what must not get out, wherever it stands in the values."""
    if not _has_sensitive(tuple(event)) and _PLAIN_TYPES.issuperset(map(type, event.values())):
        return event
    for name, value in event.items():
        if name in _OWN:
            continue
        if _is_sensitive(name):
            event[name] = MASK if value is not None else None
        elif type(value) not in _PLAIN_TYPES:
            event[name] = _mask_value(value)
    return event


_OWN: Final = frozenset({"event", "exc_info", "level", "logger", "timestamp"})


def _mask_value(value: object) -> object:
    if isinstance(value, SecretStr | SecretBytes | bytes | bytearray | memoryview):
        return MASK
    if isinstance(value, dict):
        return {str(name): MASK if _is_sensitive(str(name)) else _mask_value(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_mask_value(inner) for inner in value]
    return value


@lru_cache(maxsize=1024)
def _has_sensitive(names: tuple[str, ...]) -> bool:
    return any(_is_sensitive(name) for name in names if name not in _OWN)


@lru_cache(maxsize=1024)
def _is_sensitive(name: str) -> bool:
    lowered = name.lower().replace("-", "_")
    return not lowered.endswith("_id") and any(word in lowered for word in _SENSITIVE)


def describe_exception(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Turn `exc_info` into the places that the exception went through, without the words of libraries."""
    info = event.pop("exc_info", None)
    if info:
        event["exception"] = "\n".join(_describe(error) for error in _list_causes(_read_exception(info)))
    return event


def _read_exception(info: object) -> BaseException | None:
    if isinstance(info, BaseException):
        return info
    return sys.exception()


def _list_causes(error: BaseException | None) -> list[BaseException]:
    """The exception after what caused it, first cause first."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found[::-1]


def _describe(error: BaseException) -> str:
    kind = type(error)
    frames = traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__), lookup_lines=False)
    has_own_words = kind.__module__.partition(".")[0] == "carehook" or isinstance(error, OSError)
    words = f": {error}" if has_own_words and str(error) else ""
    places = [f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]
    return "\n".join([f"{kind.__module__}.{kind.__qualname__}{words}", *places])


def _render_json(_logger: object, _method: str, event: EventDict) -> bytes:
    return orjson.dumps(event, default=_build_text, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z)


def _build_text(value: object) -> str:
    return str(value)


class _ToStructlog(logging.Handler):
    """Takes the standard library's records, uvicorn's among them, into the one log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record as if it had been logged with structlog.

        The first line alone: what follows is, with asyncio, a `repr` of whatever failed.
        """
        log = structlog.get_logger()
        write: Callable[..., Any] = getattr(log, record.levelname.lower(), log.error)
        error = record.exc_info[1] if record.exc_info else None
        write(record.getMessage().partition("\n")[0], _origin=record.name, exc_info=error)
