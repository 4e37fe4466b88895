"""The program behind `tests.servers.namespaces`: makes hosts and links, and does to them what it is told.

    python -m tests.servers.router DESCRIPTOR

Commands come as JSON over the socket DESCRIPTOR, `[name, arguments...]`, and each is answered, some with a descriptor.
It runs in namespaces of its own, of which it is the router. A host is a process that does nothing, in a network and a
mount namespace of its own. The kernel takes all of it away once the processes in it have ended, and they end with this
one, which ends when the test lets go of the socket.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pyroute2 import IPRoute

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWNET: Final = 0x40000000
_MS_REMOUNT: Final = 32
_PR_SET_PDEATHSIG: Final = 1

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@dataclass(frozen=True)
class _Host:
    pid: int
    link: int
    address: str

    def open_namespace(self, kind: str) -> int:
        return os.open(f"/proc/{self.pid}/ns/{kind}", os.O_RDONLY)


class Router:
    """Hosts by name, each on a link and a subnet of its own: the router is its address 1, the host its address 2."""

    def __init__(self) -> None:
        self._hosts: dict[str, _Host] = {}
        self._own = os.open("/proc/self/ns/net", os.O_RDONLY)
        self._links = IPRoute()
        _raise_loopback(self._links)
        self.set_forwarding(True)

    def add_host(self, name: str) -> dict[str, Any]:
        """Make a host and its link; answers with its address and the process that is in its namespaces."""
        number = len(self._hosts) + 1
        pid = _fork_idle()
        network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        end, gateway = f"host{number}", f"10.77.{number}.1"
        self._links.link("add", ifname=end, kind="veth", peer={"ifname": "eth0", "net_ns_fd": network})
        host = _Host(pid, self._links.link_lookup(ifname=end)[0], f"10.77.{number}.2")
        _raise_link(self._links, host.link, gateway)
        with self._within(network), IPRoute() as links:
            _raise_loopback(links)
            _raise_link(links, links.link_lookup(ifname="eth0")[0], host.address)
            links.route("add", dst="default", gateway=gateway)
        os.close(network)
        self._hosts[name] = host
        return {"pid": pid, "address": host.address}

    def open_socket(self, name: str) -> int:
        """A TCP socket of a host, neither bound nor connected."""
        network = self._hosts[name].open_namespace("net")
        with self._within(network):
            made = socket.socket()
        os.close(network)
        return made.detach()

    def set_plugged(self, name: str, plugged: bool) -> None:
        """Cut a host's link, or heal it. The router says at once that the host cannot be reached."""
        self._links.link("set", index=self._hosts[name].link, state="up" if plugged else "down")

    def set_swallowing(self, name: str, swallowing: bool) -> None:
        """Let the router swallow what goes to a host, without a word; what the host sends goes on."""
        what = "add" if swallowing else "del"
        self._links.route(what, dst=f"{self._hosts[name].address}/32", type="blackhole")

    def set_forwarding(self, forwarding: bool) -> None:
        """Let the router forward at all, or swallow everything that goes from one host to another."""
        Path("/proc/sys/net/ipv4/ip_forward").write_text(str(int(forwarding)))

    def add_disk(self, name: str, path: str, size: int, owner: int, group: int) -> None:
        """A disk of `size` bytes at a folder that is there, for this host alone."""
        options = f"size={size},mode=700,uid={owner},gid={group}"
        self._carry_out_in(name, lambda: _mount(path, 0, options))

    def resize_disk(self, name: str, path: str, size: int | None) -> None:
        """Give a disk another size; None leaves no more room than is used."""
        self._carry_out_in(name, lambda: _resize(path, size))

    @contextmanager
    def _within(self, network: int) -> Iterator[None]:
        _check(_libc.setns(network, _CLONE_NEWNET))
        try:
            yield
        finally:
            _check(_libc.setns(self._own, _CLONE_NEWNET))

    def _carry_out_in(self, name: str, work: Callable[[], None]) -> None:
        """Do something in the mount namespace of a host, by a child: who has entered one does not come back."""
        host = self._hosts[name]
        child = os.fork()
        if child == 0:
            try:
                _check(_libc.setns(host.open_namespace("mnt"), _CLONE_NEWNS))
                work()
            except OSError as error:
                os._exit(error.errno or 1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != 0:
            raise OSError(code, os.strerror(code))


def _fork_idle() -> int:
    """A child in namespaces of its own that waits for its end, which comes with this process's."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
        _check(_libc.unshare(_CLONE_NEWNET | _CLONE_NEWNS))
        os.write(tell, b"1")
        os.closerange(3, 1024)
        while True:
            signal.pause()
    os.close(tell)
    told = os.read(ready, 1)
    os.close(ready)
    if not told:
        raise OSError("the kernel refused a network namespace")
    return child


def _raise_loopback(links: Any) -> None:
    links.link("set", index=links.link_lookup(ifname="lo")[0], state="up")


def _raise_link(links: Any, index: int, address: str) -> None:
    links.addr("add", index=index, address=address, prefixlen=24)
    links.link("set", index=index, state="up")


def _mount(path: str, flags: int, options: str) -> None:
    _check(_libc.mount(b"tmpfs", path.encode(), b"tmpfs", flags, options.encode()))


def _resize(path: str, size: int | None) -> None:
    while True:
        used = os.statvfs(path)
        wanted = (used.f_blocks - used.f_bfree) * used.f_frsize if size is None else size
        try:
            return _mount(path, _MS_REMOUNT, f"size={wanted}")
        except OSError as error:
            # More was written meanwhile than there is to be room for.
            if size is not None or error.errno != errno.EINVAL:
                raise


def serve(control: socket.socket) -> None:
    """Carry out commands until the other end is closed."""
    router = Router()
    while message := control.recv(65536):
        name, *arguments = json.loads(message)
        answer: dict[str, Any] = {}
        descriptors = []
        try:
            result = getattr(router, name)(*arguments)
            if isinstance(result, int):
                descriptors.append(result)
            answer["result"] = result
        except Exception as error:
            answer["error"] = f"{name}: {error!r}"
        socket.send_fds(control, [json.dumps(answer).encode()], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as inherited:
        serve(inherited)
