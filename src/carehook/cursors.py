"""Where a list goes on: the id of the last row that was shown, in a form that nobody takes for an id.

API and command line write and read cursors here, so that what one of them answers is good for the other.
"""

from __future__ import annotations

import base64
import re
from typing import Final

CURSOR_PATTERN: Final = "^[A-Za-z0-9_-]{21}[AQgw]$"
"""What 16 bytes look like in base64url (RFC 4648 §5), without padding."""


def encode_cursor(identifier: str) -> str:
    """The cursor that names the row with this id."""
    digits = bytes.fromhex(identifier.partition("_")[2])
    return base64.urlsafe_b64encode(digits).rstrip(b"=").decode()


def decode_cursor(cursor: str, prefix: str) -> str:
    """The id that a cursor stands for, in a list of ids with `prefix`. Raises ValueError where it is no cursor."""
    if re.fullmatch(CURSOR_PATTERN, cursor) is None:
        raise ValueError("must be the next_cursor of a list")
    return f"{prefix}_{base64.urlsafe_b64decode(cursor + '==').hex()}"
