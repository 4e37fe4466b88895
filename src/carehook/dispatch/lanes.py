"""What a worker has claimed and not begun, in a lane for each endpoint, and which of it is begun next. Pure.

Laws:
- The endpoint with the fewest requests in flight goes first, and among equals the one that has waited longest, so what
  there is room for is shared evenly, whatever backlog anyone has.
- An endpoint has at most its window in flight (`window`), and at most half as many as there are places free: the more
  are taken, the less anyone may have, so a crowd that hangs leaves room for those that come after it (dynamic
  thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998). Not counted as free, but to whoever
  has nothing in flight, are an eighth of the places, and half of them where the endpoint has not shown that it answers.
- Claimed ahead is only for endpoints that answer, and no more than they will soon have answered, so that their next
  requests wait for nothing; the more is held in all, the less of it. What waits for another reason is soon given back
  (`withdraw`), so that no lease ends unused.
- Nothing begins but by what the store knew lately, of it and of its endpoint, when it was claimed or confirmed
  (`confirm`). What waits by other values, or is not to be sent any more, is given back; what nobody could confirm waits
  on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from datetime import datetime
from itertools import count
from operator import attrgetter
from typing import Final, NamedTuple

from carehook.dispatch.levels import Levels
from carehook.dispatch.window import Ending, Window
from carehook.ledger.records import ClaimedDelivery

LANES_KEPT: Final = 10_000
"""Endpoints whose windows are remembered while nothing is in flight to them."""


_take_lease = attrgetter("id", "lease_token")


class _Waiting(NamedTuple):
    """A delivery that has not begun, and when the store last said that it is to be sent as it was claimed."""

    delivery: ClaimedDelivery
    known_at: float


class _Lane:
    """One endpoint's part. `granted` is what is left of the room that it was given; `line` and `level` where it is.

    All that waits has one revision of the endpoint. `is_doubtful` says that too long ago was found to be known of the
    first of it.
    """

    __slots__ = ("endpoint_id", "granted", "in_flight", "is_doubtful", "level", "line", "waiting", "window")

    def __init__(self, endpoint_id: str, limit: int) -> None:
        self.endpoint_id = endpoint_id
        self.window = Window(limit)
        self.waiting: deque[_Waiting] = deque()
        self.in_flight = 0
        self.granted = 1
        self.is_doubtful = False
        self.line: Levels[_Lane] | None = None
        self.level = 0

    @property
    def held(self) -> int:
        """What was claimed and has not ended."""
        return self.in_flight + len(self.waiting)


class Lanes:
    """The lanes of a worker with `concurrency` places, of which one endpoint has at most `endpoint_concurrency`."""

    def __init__(self, concurrency: int, endpoint_concurrency: int) -> None:
        self._concurrency = concurrency
        self._endpoint_concurrency = endpoint_concurrency
        self._lanes: dict[str, _Lane] = {}
        # Those that may begin another as far as their own window goes, by how many they have in flight.
        self._proven: Levels[_Lane] = Levels(endpoint_concurrency)
        self._unproven: Levels[_Lane] = Levels(endpoint_concurrency)
        self._turns = count()
        self._aside: list[ClaimedDelivery] = []  # to be given back
        self._is_closed = False
        self.in_flight = 0
        self.waiting = 0

    @property
    def held(self) -> int:
        """How many deliveries were claimed and have neither ended nor been given back."""
        return self.in_flight + self.waiting

    def room(self, endpoint_id: str) -> int:
        """How many more of an endpoint's deliveries are wanted now; 0 or less where it has enough."""
        lane = self._get(endpoint_id)
        lane.granted = self._find_room(lane)
        return lane.granted

    def add(self, claimed: Iterable[ClaimedDelivery], asked_at: float) -> None:
        """Put claimed deliveries into their lanes, in their order.

        `asked_at` is when the store was asked for them, in seconds of a clock that only goes forward. Claims are added
        in the order in which they were asked for.
        """
        for delivery in claimed:
            lane = self._get(delivery.endpoint.id)
            if lane.waiting and lane.waiting[-1].delivery.endpoint.revision != delivery.endpoint.revision:
                self._set_all_aside(lane)
            lane.waiting.append(_Waiting(delivery, asked_at))
            lane.granted -= 1
            self.waiting += 1
            self._file(lane)

    def find_waiting(self) -> list[ClaimedDelivery]:
        """What was claimed and has not begun."""
        return [each.delivery for lane in self._lanes.values() for each in lane.waiting]

    def confirm(self, asked: Iterable[ClaimedDelivery], changed: Collection[ClaimedDelivery], asked_at: float) -> None:
        """The store was asked for what waited, at `asked_at`; what `changed` of it is not to be sent as it was claimed.

        Of what was claimed meanwhile that says nothing.
        """
        endpoint_ids = {each.endpoint.id for each in asked}
        leases = {_take_lease(each) for each in asked}
        changed_leases = {_take_lease(each) for each in changed}
        for lane in filter(None, map(self._lanes.get, endpoint_ids)):
            waiting, lane.waiting = lane.waiting, deque()
            for each in waiting:
                lease = _take_lease(each.delivery)
                if lease in changed_leases:
                    self._set_aside(lane, each.delivery)
                else:
                    lane.waiting.append(each._replace(known_at=asked_at) if lease in leases else each)
            lane.is_doubtful = False
            self._file(lane)

    def begin(self, latest: datetime, known_since: float) -> ClaimedDelivery | None:
        """Take the next delivery that may begin, None where none may. Each must be told to `end`.

        One whose lease is over before `latest` is not begun but given back. One that was not claimed or confirmed since
        `known_since` waits until it is, and what waits behind it for its endpoint as well.
        """
        while (lane := self._find_next()) is not None:
            delivery, known_at = lane.waiting[0]
            if known_at < known_since:
                lane.is_doubtful = True
                self._file(lane)
                continue
            lane.waiting.popleft()
            is_in_time = delivery.lease_until > latest
            if is_in_time:
                lane.in_flight += 1
                lane.window.note(lane.in_flight)
                self.in_flight += 1
                self.waiting -= 1
            else:
                self._set_aside(lane, delivery)
            self._file(lane)
            if is_in_time:
                return delivery
        return None

    def end(self, endpoint_id: str, ending: Ending, seconds: float) -> bool:
        """A request ended, after so many seconds.

        True where the endpoint had less room than it may have had use for, and has some now: the queue must be told.
        """
        lane = self._lanes[endpoint_id]
        lane.window.learn(ending, seconds)
        lane.in_flight -= 1
        lane.window.note(lane.in_flight)
        self.in_flight -= 1
        if ending is not Ending.SUCCEEDED:
            self._shed(lane)
        self._file(lane)
        if lane.granted > 0 or self._find_room(lane) <= 0:
            return False
        lane.granted = 1
        return True

    def withdraw(self, latest: datetime) -> list[ClaimedDelivery]:
        """Take out what had better be given back.

        That is what could not be begun under its lease, which is over before `latest`, and what was claimed ahead of an
        endpoint that was changed, has stopped answering, or fails, since.
        """
        for lane in self._lanes.values():
            while lane.waiting and lane.waiting[0].delivery.lease_until <= latest:
                self._set_aside(lane, lane.waiting.popleft().delivery)
                lane.is_doubtful = False
            self._file(lane)
        self._forget_idle()
        withdrawn, self._aside = self._aside, []
        self.waiting -= len(withdrawn)
        return withdrawn

    def close(self) -> None:
        """Let nothing begin any more."""
        self._is_closed = True

    def clear(self) -> list[ClaimedDelivery]:
        """Take out all that was not begun."""
        cleared, self._aside = self._aside, []
        for lane in self._lanes.values():
            cleared += [each.delivery for each in lane.waiting]
            lane.waiting.clear()
            self._file(lane)
        self.waiting = 0
        return cleared

    def _get(self, endpoint_id: str) -> _Lane:
        lane = self._lanes.get(endpoint_id)
        if lane is None:
            lane = self._lanes[endpoint_id] = _Lane(endpoint_id, self._endpoint_concurrency)
        return lane

    def _find_share(self, *, is_proven: bool) -> int:
        """How many an endpoint may have in flight as things are."""
        kept = self._concurrency // 8 if is_proven else self._concurrency // 2
        return max(1, (self._concurrency - self.in_flight - kept) // 2)

    def _find_room(self, lane: _Lane) -> int:
        width = min(lane.window.size, self._find_share(is_proven=lane.window.is_proven))
        spare = max(0, 2 * self._concurrency - self.held) // 2
        ahead = min(int(width * lane.window.ahead), spare)
        room = width + ahead - lane.held
        # Where much is claimed ahead already it can wait until a claim is worth its cost.
        return room if 2 * room >= ahead else 0

    def _find_next(self) -> _Lane | None:
        """Who goes next: the fewer in flight the sooner, and of equals who has waited for longer."""
        if self._is_closed or self.in_flight >= self._concurrency:
            return None
        first = self._find_first(self._proven, is_proven=True)
        other = self._find_first(self._unproven, is_proven=False)
        if first is None or (other is not None and other < first):
            first = other
        return None if first is None else first[2]

    def _find_first(self, line: Levels[_Lane], *, is_proven: bool) -> tuple[int, int, _Lane] | None:
        first = line.first()
        return first if first is not None and first[0] < self._find_share(is_proven=is_proven) else None

    def _file(self, lane: _Lane) -> None:
        """Put a lane where it belongs after something changed: to the end of a line, unless it is in it already."""
        line: Levels[_Lane] | None = self._proven if lane.window.is_proven else self._unproven
        if not lane.waiting or lane.is_doubtful or lane.in_flight >= lane.window.size:
            line = None
        if line is lane.line and lane.in_flight == lane.level:
            return
        if lane.line is not None:
            lane.line.remove(lane, lane.level)
        if line is not None:
            line.add(lane, lane.in_flight, next(self._turns))
        lane.line, lane.level = line, lane.in_flight

    def _shed(self, lane: _Lane) -> None:
        """Set aside, from the last one on, what waits though it may not be held any more."""
        window = lane.window
        most = window.size + int(window.size * window.ahead)
        while lane.waiting and lane.held > most:
            self._set_aside(lane, lane.waiting.pop().delivery)
        lane.is_doubtful &= bool(lane.waiting)

    def _set_all_aside(self, lane: _Lane) -> None:
        while lane.waiting:
            self._set_aside(lane, lane.waiting.popleft().delivery)
        lane.is_doubtful = False

    def _set_aside(self, lane: _Lane, delivery: ClaimedDelivery) -> None:
        lane.granted = min(lane.granted, 0)  # the store has more of it again
        self._aside.append(delivery)

    def _forget_idle(self) -> None:
        surplus = len(self._lanes) - LANES_KEPT
        if surplus > 0:
            for lane in [lane for lane in self._lanes.values() if not lane.held][:surplus]:
                del self._lanes[lane.endpoint_id]
