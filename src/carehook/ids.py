"""Identifiers: a prefix that says what is named, and a UUIDv7 as 32 lower-case hexadecimal digits.

Ids made in one process sort in the order in which they were made, and across processes by millisecond, so a
table keyed by them grows at its end. They are not secret and carry no data but the instant they were made.
"""

from __future__ import annotations

import re
from typing import Final

from uuid_utils import uuid7

ORGANIZATION: Final = "org"
ENDPOINT: Final = "ep"
EVENT: Final = "evt"
DELIVERY: Final = "dlv"
ATTEMPT: Final = "att"
TOKEN: Final = "tok"  # noqa: S105 (a prefix, no secret)

PREFIXES: Final = frozenset({ORGANIZATION, ENDPOINT, EVENT, DELIVERY, ATTEMPT, TOKEN})

# RFC 9562 §5.7: version 7 in the 13th digit, variant 0b10 in the 17th.
_UUID7_HEX: Final = re.compile(r"[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}")


def new_id(prefix: str) -> str:
    """A new identifier, as `evt_` and 32 hexadecimal digits, greater than all made by this process before."""
    return f"{prefix}_{uuid7().hex}"


def is_id(prefix: str, text: str) -> bool:
    """Whether `text` has the form of an identifier made by `new_id(prefix)`."""
    head, separator, digits = text.partition("_")
    return head == prefix and separator == "_" and _UUID7_HEX.fullmatch(digits) is not None
