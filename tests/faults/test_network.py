"""Store, Carehook and receivers are hosts apart, and links between them are cut and healed, under load."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.faults.faults import part_all_hosts
from tests.faults.processes import wait_until
from tests.faults.site import Site, Size
from tests.servers.namespaces import Network


@pytest.mark.timeout(300)
def test_a_network_that_is_cut_and_healed_loses_nothing(tmp_path: Path, chance: Random, network: Network) -> None:
    with Site(tmp_path, Size.POSTGRESQL, chance, network=network) as site:
        with site.build_load() as callers:
            site.suffer(unplug_the_receivers, cut_the_store_off, part_all_hosts)
            assert all(process.is_running() for process in site.processes)
        account = site.settle(callers)
    assert account.holds(), account
    assert account.accepted > 50


def unplug_the_receivers(site: Site) -> None:
    """For so long that attempts fail of it, so that the run proves something."""
    receivers = site.hosts["receivers"]
    before = count_unreachable(site)
    receivers.set_plugged(False)
    wait_until(lambda: count_unreachable(site) > before, "attempt that reaches nobody")
    receivers.set_plugged(True)


def cut_the_store_off(site: Site) -> None:
    """Until the API says that it is not ready: silence must not leave whoever asks waiting as well."""
    store = site.hosts["store"]
    store.set_swallowing(True)
    wait_until(lambda: site.api.get_readiness() == 503, "unreadiness")
    store.set_swallowing(False)


def count_unreachable(site: Site) -> int:
    return sum(worker.count_in_log("outcome", "unreachable") for worker in site.workers)
