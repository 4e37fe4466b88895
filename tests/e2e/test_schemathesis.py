"""Schemathesis reads the OpenAPI document and tries to find a request that the running API does not answer as it says.

Every check is on. A run is bounded by the number of its examples, and the same each time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from carehook.config import Settings
from tests.e2e.conftest import ALLOWED, Client, RunningApi
from tests.receivers import RecordingReceiver

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = 12
SEED = 7


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    """An API without a worker: nothing of what is found here depends on what receivers answer."""
    settings = Settings(home=tmp_path_factory.mktemp("fuzzed"), allow_http=True, allowed_networks=ALLOWED)  # type: ignore[arg-type]
    with RunningApi(settings, is_working=False) as running:
        yield running


@pytest.mark.timeout(300)
def test_schemathesis_finds_nothing(
    api: RunningApi, operator: Client, organization: str, receiver: RecordingReceiver, tmp_path: Path
) -> None:
    history: dict[str, list[str]] = {"allergies": [], "diseases": [], "medications": []}
    operator.take("PUT", f"/v1/organizations/{organization}/patients/patient", history)
    operator.take("PUT", "/v1/professionals/professional", {"name": "Doctor", "avatar": ""})
    path = f"/v1/organizations/{organization}/endpoints"
    endpoint = operator.take("POST", path, {"url": receiver.url})["id"]
    command = [str(Path(sys.executable).with_name("st")), "run", f"{operator.url}/openapi.json"]
    command += ["--checks", "all", "--max-examples", str(EXAMPLES), "--seed", str(SEED), "--continue-on-failure"]
    command += ["--header", f"Authorization: Bearer {operator.token}", "--no-color", "--generation-database", "none"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "SCHEMATHESIS_HOOKS": "tests.e2e.schemathesis_hooks",
        "FUZZED_URL": operator.url,
        "FUZZED_TOKEN": operator.token or "",
        "FUZZED_ORGANIZATION": organization,
        "FUZZED_ENDPOINT": endpoint,
        "FUZZED_RECEIVER": receiver.url,
        "NO_PROXY": "127.0.0.1",
    }
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2_000:]
    paths = operator.take("GET", "/openapi.json")["paths"]
    # All but the one that schemathesis has just read the document from.
    count = sum(len(operations) for path, operations in paths.items() if path != "/openapi.json")
    assert f"Selected: {count}/{count}" in run.stdout
