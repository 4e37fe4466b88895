"""Laws of what a receiver sees, each as a function of what was seen that tells the breaches. Pure.

Instants are of one monotonic clock. A request has begun when the receiver has all of it, and has ended just before the
receiver answers: so what counts as before something else was before it, however slow the receiver is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from tests.faults.interventions import Silence
from tests.faults.recipients import Arrival


def find_disorder(
    sequence: Sequence[str], arrivals: Sequence[Arrival], given_up: Mapping[str, int], cut_off: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Requests of a patient that began before each of the events accepted earlier was taken or given up.

    Each as its event and the one that was not done.

    `sequence` holds the patient's events in their order. `given_up` says of some after how many requests in vain they
    may have been, but nobody knows of those in `cut_off`, an attempt of which was.
    """
    done: dict[str, float] = {}
    in_vain: Counter[str] = Counter()
    for each in arrivals:
        in_vain[each.event_id] += not each.is_taken
        if each.is_taken or in_vain[each.event_id] == given_up.get(each.event_id):
            done[each.event_id] = min(each.ended, done.get(each.event_id, math.inf))
    for event_id, requests in given_up.items():
        if event_id in cut_off or requests == 0:
            done[event_id] = -math.inf
    earliest: dict[str, tuple[float, str]] = {}
    last_done = (-math.inf, "")
    for event_id in sequence:
        earliest[event_id] = last_done
        last_done = max(last_done, (done.get(event_id, math.inf), event_id))
    for each in arrivals:
        if each.event_id in earliest and each.began < earliest[each.event_id][0]:
            yield each.event_id, earliest[each.event_id][1]


def find_crowds(arrivals: Sequence[Arrival], most: int, cut_off: Collection[str]) -> Iterator[str]:
    """Requests that began while `most` others were in flight, not counting those whose attempt was cut off."""
    counted = [each for each in arrivals if each.event_id not in cut_off]
    # What ends in the very moment in which another begins makes room for it.
    changes = sorted([(each.began, 1) for each in counted] + [(each.ended, -1) for each in counted])
    in_flight = 0
    for _, change in changes:
        in_flight += change
        if in_flight > most:
            yield f"{in_flight} requests were in flight where there may be {most}"


def find_haste(arrivals: Sequence[Arrival], since: float, rate: float, allowed: float) -> Iterator[str]:
    """More requests until any instant than `rate` a second allows since the endpoint is there, and `allowed` beyond."""
    for count, each in enumerate(arrivals, start=1):
        if count > rate * (each.began - since) + allowed:
            yield f"{count} requests in {each.began - since:.3f} s where {rate:g} a second may be"


def find_noise(
    silence: Silence, arrivals: Sequence[Arrival], asked: Mapping[str, float], cut_off: Collection[str]
) -> Iterator[str]:
    """Requests that began in a silence. `asked` says when the publishing of each event began."""
    heard: Counter[str] = Counter()
    for each in arrivals:
        if not silence.since < each.began < silence.until or each.event_id in cut_off:
            continue
        if silence.path not in (None, each.path) or silence.event_id not in (None, each.event_id):
            continue
        heard[each.event_id] += 1
        may_come = each.event_id in silence.in_flight and asked.get(each.event_id, -math.inf) < silence.answered
        if heard[each.event_id] > may_come:
            late = each.began - silence.answered
            yield f"{each.event_id} was sent {late:.3f} s after {silence.why}"
