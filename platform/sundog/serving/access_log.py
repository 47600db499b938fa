"""The access log: one JSON object a line, written in bundles, turned over at a size.

Never sees a key or a body: callers hand it the key's id.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import orjson

from sundog import telemetry

FLUSH_S = 0.5
MAX_BYTES = 64 * 2**20

log = logging.getLogger("sundog.gateway")


class AccessLog:
    """Buffers lines until `flush`; a full disk costs lines, never requests."""

    def __init__(self, path: Path | None, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._lines: list[bytes] = []
        self.lost = 0
        self._failing = False

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
        except OSError as error:
            self.lost += len(lines)
            if not self._failing:
                log.warning(
                    "the access log cannot be written, lines are lost: %s; make room there, or set "
                    "SUNDOG_ACCESS_LOG to another file", error,
                )  # fmt: skip
            self._failing = True
        else:
            self._failing = False

    def text(self) -> list[str]:
        """For Prometheus: lines that were lost."""
        name = telemetry.GATEWAY_LOG_LOST
        return [f"# TYPE {name} counter", f"{name} {self.lost}"]
