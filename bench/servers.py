"""`carehook bench` with a PostgreSQL and a NATS server out of wheels: durable, on loopback, gone at the end.

The arguments are those of `carehook bench`.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.servers.nats import NatsServers  # noqa: E402 (the tests are no package that is installed)
from tests.servers.postgres import PostgresServer  # noqa: E402

DURABLE = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    # As for a server of a few GiB that has other work too.
    "shared_buffers": "1GB",
    "effective_cache_size": "4GB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "jit": "off",
}


def main() -> int:
    """Run `carehook bench` beside the servers; its exit code."""
    with PostgresServer(settings=DURABLE) as postgres, NatsServers() as nats:
        environment = {
            **os.environ,  # noqa: TID251 (it is passed on)
            "CAREHOOK_DATABASE_URL": postgres.plain_url(),
            "CAREHOOK_QUEUE_URL": nats.url,
        }
        command = [sys.executable, "-m", "carehook.cli", "bench", *sys.argv[1:]]
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
