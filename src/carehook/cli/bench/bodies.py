"""The events that are published: the contract's examples, brought to a size."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

import orjson

from carehook.events import CATALOGUE


class BodySize(StrEnum):
    """How large a published event is."""

    SMALL = "1 KB"
    USUAL = "2 KB"
    LARGE = "20 KB"


_BYTES: Final = {BodySize.SMALL: 1_000, BodySize.LARGE: 20_000}


def build_event(size: BodySize = BodySize.USUAL) -> bytes:
    """An event of this size; the usual one is the contract's `patient_consultation_finished` as it is."""
    if size is BodySize.USUAL:
        return orjson.dumps(CATALOGUE["patient_consultation_finished"].example)
    name = "patient_report_sent" if size is BodySize.SMALL else "patient_consultation_finished"
    # Read anew from JSON, in which no two reports are the same object.
    event: dict[str, Any] = orjson.loads(orjson.dumps(CATALOGUE[name].example))
    payload = event["payload"]
    report = payload if size is BodySize.SMALL else payload["reports"][0]
    text: str = report["content"]["plan"]
    missing = _BYTES[size] - len(orjson.dumps(event))
    report["content"]["plan"] = text + (f" {text}" * (missing // len(text) + 1))[:missing]
    return orjson.dumps(event)


def build_batch(size: BodySize, events: int) -> bytes:
    """The body of a batch of so many events."""
    return b'{"events":[' + b",".join([build_event(size)] * events) + b"]}"
