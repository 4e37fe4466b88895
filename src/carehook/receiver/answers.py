"""What every adapter answers to a request that it does not pass on: one small problem document (RFC 9457)."""

from __future__ import annotations

BODY_LIMIT = 2 * 1024 * 1024
"""The largest body an adapter reads, in bytes."""

_MOST_DIGITS = 20  # more than any length; Python refuses to read a number of thousands of digits
PROBLEM_TYPE = "application/problem+json"
TOO_LARGE_STATUS = 413
TOO_LARGE = "the body is larger than this receiver takes"


def is_announced_too_large(content_length: str | None, body_limit: int) -> bool:
    """Whether the header `content-length` announces more than `body_limit` bytes; one that is no number does not."""
    if content_length is None or not content_length.isdecimal():
        return False
    return len(content_length) > _MOST_DIGITS or int(content_length) > body_limit


def build_problem(detail: str) -> dict[str, str]:
    """Build the problem document. `detail` is the error's text, which holds neither payload nor secret."""
    return {"detail": detail}
