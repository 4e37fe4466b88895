"""Everything that can befall a site, at random and under load, for as long as there is time; the counts are kept.

    python -m tests.faults.long --size postgresql --minutes 10 --seed 7

The counts go to `bench/results/faults/<date>-<size>.json`. The exit code is 0 if the law (`tests.faults`) was kept, 1
if it was not. Leases last as long as the product's own, unless `--lease` says otherwise.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel

from carehook import __version__
from carehook.cli.bench.machine import describe_machine
from carehook.cli.bench.report import Machine
from tests.faults.accounts import Account
from tests.faults.faults import FAULTS, Fault
from tests.faults.processes import ROOT
from tests.faults.site import LEASE, Site, Size
from tests.servers.namespaces import Network

RESULTS = ROOT / "bench" / "results" / "faults"

_LONGEST_CUT = 20.0
"""Seconds."""


class Result(BaseModel):
    """What is kept of a run."""

    carehook: str
    size: Size
    began_at: datetime
    seconds: float
    seed: int
    lease_seconds: float
    machine: Machine
    faults: dict[str, int]
    """How often each happened."""
    requests_not_answered: int
    requests_answered_503: int
    law_was_kept: bool
    account: Account


def run(size: Size, minutes: float, seed: int, lease: float) -> Result:
    """Let faults happen for so long, and count."""
    chance = random.Random(seed)
    began_at, began = datetime.now(UTC), time.monotonic()
    faults: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="carehook-faults-") as name, Network() as network:
        machine = describe_machine(Path(name))
        site = Site(Path(name), size, chance, network=network, lease=lease, longest_cut=_LONGEST_CUT)
        with site:
            with site.build_load(pause=0.05) as callers:
                for fault in choose_faults(size, chance):
                    if time.monotonic() - began >= 60 * minutes:
                        break
                    print(f"{time.monotonic() - began:6.0f} s  {fault.__name__}", flush=True)
                    fault(site)
                    faults[fault.__name__] += 1
                    site.tend()
                    # Else the next one meets what is still getting up.
                    if chance.random() < 0.5:
                        site.wait_for_progress()
                    site.wait_a_while(5.0)
            account = site.settle(callers)
    return Result(
        carehook=__version__,
        size=size,
        began_at=began_at,
        seconds=round(time.monotonic() - began, 1),
        seed=seed,
        lease_seconds=lease,
        machine=machine,
        faults=dict(sorted(faults.items())),
        requests_not_answered=callers.repeated,
        requests_answered_503=callers.unavailable,
        law_was_kept=account.holds(),
        account=account,
    )


def choose_faults(size: Size, chance: random.Random) -> Iterator[Fault]:
    """Faults without end: each once, then each again, every time in another order."""
    while True:
        yield from chance.sample(FAULTS[size], len(FAULTS[size]))


def main() -> None:
    """Run as the command line says, keep the counts, and exit."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.long", description=__doc__)
    parser.add_argument("--size", type=Size, choices=list(Size), required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--lease", type=float, default=LEASE, help="seconds")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder for the counts")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    result = run(given.size, given.minutes, given.seed, given.lease)
    path = given.results / f"{result.began_at:%Y-%m-%d-%H%M}-{result.size}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(result.model_dump_json(indent=2) + "\n")
    print(path)
    sys.exit(not result.law_was_kept)


if __name__ == "__main__":
    main()
