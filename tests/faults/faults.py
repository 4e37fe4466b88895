"""What can befall a site. Each fault is over when its function returns: killed is started, cut is healed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from tests.faults.gates import GATES, strike_at
from tests.faults.processes import Process
from tests.faults.site import NODES, Site, Size
from tests.servers.postgres import PostgresServer

Fault = Callable[[Site], None]

RECOVERY: Final = 6.0
"""Seconds within which a living worker sees a lease that ran out."""

_PATIENCE: Final = 300.0
"""Seconds after which a wait fails. It is never reached unless something is broken."""


def kill_the_api(site: Site) -> None:
    """`kill -9` of what serves the API; in the embedded size it delivers as well."""
    _kill(site, site.front)


def kill_a_worker(site: Site) -> None:
    """`kill -9` of one of the processes that deliver."""
    _kill(site, site.chance.choice(site.delivering))


def kill_all_at_once(site: Site) -> None:
    """`kill -9` of every process of Carehook, as when a machine loses power."""
    for process in site.processes:
        process.kill()
    site.tend()


def kill_all_after_a_change(site: Site) -> None:
    """`kill -9` of everything as soon as somebody was told that an endpoint was changed or a delivery cancelled."""

    def strike() -> None:
        for process in site.processes:
            process.kill()

    struck = site.operators.strike_after_the_next_change(strike)
    assert struck.wait(_PATIENCE), f"nobody changed anything {site.describe_surprises()}"
    site.tend()


def kill_between_two_transactions(site: Site) -> None:
    """`kill -9` of whoever comes to a certain statement of PostgreSQL, which is or is not carried out all the same."""
    kill_before(site, site.chance.choice(list(GATES)))


def kill_before(site: Site, what: str) -> None:
    """`kill -9` of the first who comes to a gate."""
    commits = site.chance.random() < 0.5
    print(f"before {what}, which {'is' if commits else 'is not'} carried out")

    def strike(port: int) -> None:
        found = [process for process in site.processes if process.is_connected_from(port)]
        assert found, "nobody is connected from there"
        for process in found:
            process.kill()

    strike_at(site.reach_database(), GATES[what], strike, commits=commits)
    site.tend()


def _kill(site: Site, process: Process) -> None:
    process.kill()
    process.start()
    # One time in four it may not even come to its start.
    if site.chance.random() < 0.25:
        site.wait_a_while()
        process.kill()
    site.tend()


def freeze_a_worker(site: Site) -> None:
    """SIGSTOP of one of the processes that deliver, until its leases have run out and others had time to see it."""
    process = site.chance.choice(site.delivering)
    process.freeze()
    time.sleep(site.lease + RECOVERY)
    process.thaw()


def kill_the_database(site: Site) -> None:
    """`kill -9` of PostgreSQL's first process, then a start on the same data."""
    _end_the_database(site, PostgresServer.kill)


def restart_the_database(site: Site) -> None:
    """A fast shutdown, as an operator makes it, and a start."""
    _end_the_database(site, PostgresServer.stop)


def restart_the_database_at_once(site: Site) -> None:
    """An immediate shutdown, which leaves recovery to the start."""
    _end_the_database(site, PostgresServer.stop_at_once)


def _end_the_database(site: Site, end: Callable[[PostgresServer], None]) -> None:
    assert site.database is not None
    end(site.database)
    site.wait_for_refusal()
    site.wait_a_while()
    site.database.start()


def kill_a_process_of_the_database(site: Site) -> None:
    """`kill -9` of one of PostgreSQL's other processes: it drops all connections and recovers by itself."""
    assert site.database is not None
    site.database.kill_backend(site.chance)


def freeze_the_database(site: Site) -> None:
    """SIGSTOP of all of PostgreSQL, as where its disk hangs, until callers were told so and a while longer."""
    assert site.database is not None
    site.database.freeze()
    site.wait_for_refusal()
    site.wait_a_while()
    site.database.thaw()


def kill_a_node(site: Site) -> None:
    """`kill -9` of one node of NATS; the others go on."""
    assert site.queue is not None
    node = site.chance.randrange(NODES)
    site.queue.kill(node)
    site.wait_a_while(site.longest_cut)
    site.queue.start(node)


def kill_all_nodes(site: Site) -> None:
    """`kill -9` of every node of NATS, which are gone for a while, then come back with what they had stored."""
    assert site.queue is not None
    site.queue.kill()
    site.wait_a_while(site.longest_cut)
    site.queue.start()


def lose_all_nodes_for_a_minute(site: Site) -> None:
    """`kill -9` of every node of NATS, which come back after a minute with what they had stored."""
    assert site.queue is not None
    site.queue.kill()
    time.sleep(60.0)
    site.queue.start()


def fill_the_disk(site: Site) -> None:
    """No room on the disk of the store, until callers were told so and a while longer."""
    assert site.disk is not None
    # PostgreSQL panics where it cannot write its log, and recovers by itself, unless it finds no room for that either.
    site.disk.fill()
    site.wait_for_refusal()
    site.wait_a_while()
    site.disk.free()
    if site.database is not None and not site.database.is_running():
        site.database.start()


def jump_ahead(site: Site) -> None:
    """The clock jumps ahead, by more or by much more than a lease, and stays there."""
    site.jump(site.chance.choice([site.lease * 2, 3600.0]))


def jump_back(site: Site) -> None:
    """The clock jumps back, and some time later it is set right."""
    seconds = site.chance.choice([site.lease * 2, 3600.0])
    site.jump(-seconds)
    site.wait_a_while()
    site.jump(seconds)


def unplug_a_host(site: Site) -> None:
    """A host's link is down: who sends there is told that it cannot be reached."""
    host = site.chance.choice([*site.hosts.values()])
    host.set_plugged(False)
    site.wait_a_while(site.longest_cut)
    host.set_plugged(True)


def swallow_what_goes_to_a_host(site: Site) -> None:
    """What is sent to a host is lost, silently; what it sends arrives."""
    host = site.chance.choice([*site.hosts.values()])
    host.set_swallowing(True)
    site.wait_a_while(site.longest_cut)
    host.set_swallowing(False)


def part_all_hosts(site: Site) -> None:
    """Whatever is sent from one host to another is lost, silently."""
    assert site.network is not None
    site.network.set_forwarding(False)
    site.wait_a_while(site.longest_cut)
    site.network.set_forwarding(True)


_ANYWHERE: Final[Sequence[Fault]] = (
    kill_the_api,
    kill_a_worker,
    kill_all_at_once,
    kill_all_after_a_change,
    freeze_a_worker,
    fill_the_disk,
    jump_ahead,
    jump_back,
    unplug_a_host,
    swallow_what_goes_to_a_host,
    part_all_hosts,
)
_POSTGRESQL: Final[Sequence[Fault]] = (
    kill_the_database,
    restart_the_database,
    restart_the_database_at_once,
    kill_a_process_of_the_database,
    kill_between_two_transactions,
    freeze_the_database,
)
FAULTS: Final[Mapping[Size, Sequence[Fault]]] = {
    Size.EMBEDDED: _ANYWHERE,
    Size.POSTGRESQL: (*_ANYWHERE, *_POSTGRESQL),
    Size.JETSTREAM: (*_ANYWHERE, *_POSTGRESQL, kill_a_node, kill_all_nodes, lose_all_nodes_for_a_minute),
}
"""All that can befall a site of each size that is on a network."""
