"""The README's receiver is a program: it runs, verifies, and prints what the README says."""

import re
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

from carehook.events import CATALOGUE, build_body
from carehook.signature import SigningSecret, generate_signing_secret, sign

README = Path(__file__).parents[2] / "README.md"


def read_receiver(port: int, secret: str) -> str:
    """The README's program, with the secret that was shown and a free port."""
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert "whsec_5dNTxS…" in program
    assert "9000" in program
    return str(program).replace("whsec_5dNTxS…", secret).replace("9000", str(port))


def post(port: int, body: bytes, headers: dict[str, str]) -> int:
    for _ in range(100):
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("POST", "/webhooks", body, headers)
            return connection.getresponse().status
        except ConnectionRefusedError:
            time.sleep(0.1)
        finally:
            connection.close()
    raise AssertionError("the README's receiver does not listen")


def test_the_receiver_of_the_readme_verifies(tmp_path: Path, free_port: int) -> None:
    secret = generate_signing_secret()
    program = tmp_path / "receiver.py"
    program.write_text(read_receiver(free_port, secret))
    entry = CATALOGUE["patient_report_sent"]
    body = build_body(entry.model.model_validate(entry.example))
    now = int(time.time())
    headers = {
        "x-webhook-signature": "agreed-with-support",
        "webhook-id": "evt_1",
        "webhook-timestamp": str(now),
        "webhook-signature": sign("evt_1", now, body, [SigningSecret.parse(secret)]),
    }
    receiver = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert post(free_port, body, headers) == 204
        assert post(free_port, body, {**headers, "x-webhook-signature": "another"}) == 401
    finally:
        receiver.terminate()
        printed, _ = receiver.communicate(timeout=10)
    assert printed == "patient_report_sent patient_code\n"
