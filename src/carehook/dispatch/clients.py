"""HTTP clients in which each host name is pinned to one judged address.

Laws:
- A client is used for no name that it has no pin for, so nothing resolves a name a second time.
- A client takes 5 ms to make and holds 200 KB, nearly all of it for the certificates that it trusts, however many names
  are pinned in it. So names that are asked for at once share one, and no more than `limit` are kept: for one more, the
  names of the half that was unused for longest move into it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from contextvars import Context
from typing import Final, NamedTuple

from pyreqwest.client import Client

NAMES_AT_MOST: Final = 2_000
"""Names pinned in one client; what is beyond it when clients are joined is forgotten, and found anew when needed."""


class Pin(NamedTuple):
    """A name, the address that it is pinned to, and what it is contacted for there."""

    scheme: str
    host: str
    port: int
    address: str


class _Group:
    """A client and what is pinned in it."""

    __slots__ = ("client", "pins")

    def __init__(self, client: Client, pins: Collection[Pin]) -> None:
        self.client = client
        self.pins = pins


class Clients:
    """Clients by pin. `build` makes one; it is called on a thread."""

    def __init__(self, build: Callable[[Collection[Pin]], Client], limit: int) -> None:
        self._build = build
        self._limit = limit
        self._groups: OrderedDict[_Group, None] = OrderedDict()  # the one unused for longest first
        self._group_of: dict[Pin, _Group] = {}
        self._wanted: dict[Pin, asyncio.Future[Client]] = {}
        self._builder: asyncio.Task[None] | None = None

    def __contains__(self, pin: Pin) -> bool:
        return pin in self._group_of

    def find(self, pin: Pin) -> Client | None:
        """The client for a pin, None where there is none yet."""
        group = self._group_of.get(pin)
        if group is None:
            return None
        self._groups.move_to_end(group)
        return group.client

    async def make(self, pin: Pin) -> Client:
        """The client for a pin, made with those for whatever else is asked for meanwhile."""
        wanted = self._wanted.get(pin)
        if wanted is None:
            wanted = self._wanted[pin] = asyncio.get_running_loop().create_future()
            if self._builder is None:
                self._builder = asyncio.create_task(self._build_wanted(), context=Context())
        # The shield: one who gives up waiting must not cancel the client of the others.
        return await asyncio.shield(wanted)

    def forget(self, pin: Pin) -> None:
        """Have no client for a pin any more."""
        self._group_of.pop(pin, None)

    async def close(self) -> None:
        """Close all clients, those that are being made as well."""
        if self._builder is not None:
            await self._builder
        groups, self._groups = self._groups, OrderedDict()
        self._group_of.clear()
        for group in groups:
            await group.client.close()

    async def _build_wanted(self) -> None:
        try:
            while self._wanted:
                await self._build_next()
        finally:
            self._builder = None

    async def _build_next(self) -> None:
        wanted = choose_pins(self._wanted)[:NAMES_AT_MOST]
        old = list(self._groups)[: max(1, self._limit // 2)] if len(self._groups) >= self._limit else []
        moved = [pin for group in reversed(old) for pin in group.pins if self._group_of.get(pin) is group]
        pins = choose_pins([*wanted, *moved])[:NAMES_AT_MOST]
        try:
            client = await asyncio.to_thread(self._build, pins)
        except Exception as error:
            for pin in wanted:
                self._settle(pin).set_exception(error)
            return
        # Those put out are not closed: their exchanges in flight go on, and their connections end with the last one.
        self._put_out(old)
        group = _Group(client, pins)
        self._groups[group] = None
        self._group_of.update(dict.fromkeys(pins, group))
        for pin in wanted:
            self._settle(pin).set_result(client)

    def _settle(self, pin: Pin) -> asyncio.Future[Client]:
        future = self._wanted.pop(pin)
        # Whoever waited may have given up, and then nobody asks what became of it.
        future.add_done_callback(asyncio.Future.exception)
        return future

    def _put_out(self, groups: Iterable[_Group]) -> None:
        for group in groups:
            del self._groups[group]
            for pin in group.pins:
                if self._group_of.get(pin) is group:
                    del self._group_of[pin]


def choose_pins(pins: Iterable[Pin]) -> list[Pin]:
    """Those of the pins that one client can hold, the first ones first: no name can have two addresses in it."""
    addresses: dict[str, str] = {}
    return [pin for pin in pins if addresses.setdefault(pin.host, pin.address) == pin.address]
