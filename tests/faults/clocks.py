"""A clock that several processes have in common, and that a test sets while they run."""

from __future__ import annotations

import mmap
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

_AHEAD: Final = struct.Struct("d")


class FileClock:
    """The present instant, moved by as many seconds as the file says."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(_AHEAD.pack(0.0))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), _AHEAD.size)

    def __call__(self) -> datetime:
        (ahead,) = _AHEAD.unpack_from(self._shared)
        return datetime.now(UTC) + timedelta(seconds=ahead)

    def set_ahead(self, seconds: float) -> None:
        """Let it jump: from now on it is `seconds` ahead, for every process."""
        _AHEAD.pack_into(self._shared, 0, seconds)
