"""The hosts that faults happen on: they reach each other until a link is cut, and their disks can be full."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.namespaces import NamespacedHost, Network

_CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1).close()
except OSError as error:
    print(type(error).__name__)
else:
    print("reached")
"""


@pytest.fixture
def hosts(network: Network) -> list[NamespacedHost]:
    return [network.add_host(name) for name in ("a", "b", "c")]


def connect(source: NamespacedHost, target: NamespacedHost, listener: socket.socket) -> str:
    """What comes of a connection from one host to another."""
    command = [sys.executable, "-c", _CONNECT, target.address, str(listener.getsockname()[1])]
    done = subprocess.run(**source.build_call(command), check=True, capture_output=True, text=True)
    return str(done.stdout.strip())


def test_hosts_reach_each_other_until_a_link_is_cut_and_once_it_is_healed(
    network: Network, hosts: list[NamespacedHost]
) -> None:
    source, target, other = hosts
    with target.listen() as listener, other.listen() as elsewhere:
        found = [connect(source, target, listener)]
        target.set_plugged(False)
        found += [connect(source, target, listener), connect(source, other, elsewhere)]
        target.set_plugged(True)
        target.set_swallowing(True)
        found += [connect(source, target, listener), connect(source, other, elsewhere)]
        target.set_swallowing(False)
        network.set_forwarding(False)
        found.append(connect(source, target, listener))
        network.set_forwarding(True)
        found.append(connect(source, target, listener))
    assert found == ["reached", "OSError", "reached", "TimeoutError", "reached", "TimeoutError", "reached"]


def test_the_test_itself_reaches_a_host_whose_link_is_cut(hosts: list[NamespacedHost]) -> None:
    host = hosts[0]
    with host.listen() as listener:
        host.set_plugged(False)
        with socket.create_connection(("127.0.0.1", host.reach(listener.getsockname()[1])), timeout=10) as client:
            server, _ = listener.accept()
            with server:
                server.sendall(b"from the host")
                assert client.recv(100) == b"from the host"


def test_a_disk_that_is_full_takes_nothing_more_until_there_is_room(
    hosts: list[NamespacedHost], tmp_path: Path
) -> None:
    disk = hosts[0].add_disk(tmp_path, 1 << 20, os.getuid(), os.getgid())
    file = hosts[0].find_path(tmp_path) / "file"
    file.write_bytes(bytes(10_000))
    disk.fill()
    with pytest.raises(OSError, match="No space") as refused:
        file.with_name("another").write_bytes(bytes(10_000))
    assert refused.value.errno == errno.ENOSPC
    disk.free()
    file.with_name("another").write_bytes(bytes(10_000))
    assert list(tmp_path.iterdir()) == []


def test_what_the_router_cannot_do_is_said(network: Network) -> None:
    with pytest.raises(RuntimeError, match="open_socket"):
        network.ask("open_socket", "nowhere")
