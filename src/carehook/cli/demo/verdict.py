"""Whether everything arrived: exactly what was told, verified, typed, equal, and once more after a failure. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from carehook.cli.demo.receiver import FAILS_AT_FIRST, Arrival
from carehook.cli.demo.story import Expected
from carehook.events import CATALOGUE

Delivery = Mapping[str, Any]
"""A delivery with its attempts, as the API shows it."""


def find_faults(
    expected: Sequence[Expected], arrivals: Sequence[Arrival], deliveries: Mapping[str, Sequence[Delivery]]
) -> list[str]:
    """What is not as it must be, a sentence each; nothing where all is well. `deliveries` are by event id."""
    known = {each.event_id for each in expected}
    faults = [f"a request was not verified: {each.refusal}" for each in arrivals if each.event is None]
    faults += [
        f"{each.webhook_id} arrived and nobody had told of it" for each in arrivals if each.webhook_id not in known
    ]
    for each in expected:
        own = [arrival for arrival in arrivals if arrival.webhook_id == each.event_id]
        name = f"{each.event_type} ({each.what})"
        faults += [f"{name} {fault}" for fault in _find_own(each, own, deliveries.get(each.event_id, ()))]
    failures = sum(arrival.status == 500 for arrival in arrivals)
    if failures != FAILS_AT_FIRST:
        faults.append(f"the receiver failed {failures} times instead of {FAILS_AT_FIRST}, so no retry was seen")
    return list(dict.fromkeys(faults))


def _find_own(expected: Expected, arrivals: Sequence[Arrival], deliveries: Sequence[Delivery]) -> Iterator[str]:
    """What is wrong with one event, as the rest of a sentence that begins with its name."""
    accepted = [each for each in arrivals if each.event is not None and each.status < 300]
    if not accepted:
        yield "did not arrive"
        return
    if len({each.body for each in arrivals}) > 1:
        yield "was not the same bytes on every attempt"
    for arrival in accepted:
        if type(arrival.event) is not CATALOGUE[expected.event_type].model:
            yield "arrived as another type"
        if orjson.loads(arrival.body)["payload"] != expected.payload:
            yield "arrived with another payload than was told"
        if expected.body is not None and arrival.body != expected.body:
            yield "arrived in other bytes than the contract's"
    if [each["state"] for each in deliveries] != ["succeeded"]:
        yield "is not one delivery that succeeded"
    elif (made := len(deliveries[0]["attempts"])) != len(arrivals):
        yield f"arrived {len(arrivals)} times in {made} attempts"
