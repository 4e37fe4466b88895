"""What every adapter answers to a request that it does not pass on: one small problem document (RFC 9457)."""

from __future__ import annotations

BODY_LIMIT = 2 * 1024 * 1024
"""The largest body an adapter reads, in bytes."""

PROBLEM_TYPE = "application/problem+json"
TOO_LARGE_STATUS = 413
TOO_LARGE = "the body is larger than this receiver takes"


def build_problem(detail: str) -> dict[str, str]:
    """Build the problem document. `detail` is the error's text, which holds neither payload nor secret."""
    return {"detail": detail}
