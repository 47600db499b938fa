"""The access log: one JSON object a line, written in bundles, turned over at a size.

Never sees a key or a body: callers hand it the key's id.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

FLUSH_S = 0.5
MAX_BYTES = 64 * 2**20


class AccessLog:
    """Buffers lines until `flush`; a full disk costs lines, never requests."""

    def __init__(self, path: Path | None, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._lines: list[bytes] = []
        self.lost = 0

    def add(self, entry: dict[str, Any]) -> None:
        if self._path is not None:
            self._lines.append(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        if not lines or self._path is None:
            return
        try:
            with self._path.open("ab") as file:
                file.write(b"".join(lines))
                size = file.tell()
            if size > self._max_bytes:
                self._path.replace(self._path.with_suffix(".1"))
        except OSError:
            self.lost += len(lines)
