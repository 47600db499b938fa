"""A run's checkpoints in the storage root: written whole or not at all, checked before use.

Owns the layout `<prefix>/<step>/` and its manifest; knows nothing of models or optimizers.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sundog.clock import WALL, Clock
from sundog.errors import Corrupt, FormatTooNew, NotFound
from sundog.storage.root import Root, file_digest

FORMAT = 1
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose bytes match their hashes."""

    step: int
    about: Mapping[str, Any]
    parts: Mapping[str, bytes]


class Checkpoints:
    """The checkpoints under one prefix of a root. The manifest is written last: it is the commit."""

    def __init__(self, root: Root, prefix: str, keep: int = 3, clock: Clock = WALL) -> None:
        self._root = root
        self._prefix = prefix.rstrip("/")
        self._keep = keep
        self._clock = clock

    def save(self, step: int, parts: Mapping[str, bytes | Path], about: Mapping[str, Any]) -> int:
        """Commit these parts as the checkpoint of `step`, drop the oldest; returns bytes written."""
        files = self.put(step, parts)
        self.commit(step, files, about)
        return sum(file["bytes"] for file in files.values())

    def put(self, step: int, parts: Mapping[str, bytes | Path]) -> dict[str, Any]:
        """Write some of a checkpoint's parts, bytes or files; what `commit` needs to know of them."""
        token = uuid.uuid4().hex[:8]  # a half-written older try never mixes with this one
        files = {}
        for name, data in parts.items():
            path = f"{name}-{token}"
            key = f"{self._prefix}/{step}/{path}"
            if isinstance(data, Path):
                self._root.upload(data, key)
                digest, size = file_digest(data), data.stat().st_size
            else:
                self._root.write(key, data)
                digest, size = hashlib.sha256(data).hexdigest(), len(data)
            files[name] = {"path": path, "sha256": digest, "bytes": size}
        return files

    def commit(self, step: int, files: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """All parts are there, whoever wrote them: from here on the checkpoint exists."""
        manifest = {
            "format": FORMAT, "step": step, "files": dict(files), "about": dict(about),
            "created_s": self._clock.now_s(),
        }  # fmt: skip
        self._root.write(f"{self._prefix}/{step}/{_MANIFEST}", json.dumps(manifest).encode())
        self.retain(step)

    def steps(self) -> list[int]:
        """The steps that have a folder, oldest first, whole or not."""
        return sorted(int(n) for n in self._root.children(self._prefix) if n.isdigit())

    def read(self, step: int) -> Checkpoint:
        """The checkpoint of `step`. Corrupt when it is half-written or does not match its hashes."""
        where = f"{self._prefix}/{step}"
        try:
            manifest = json.loads(self._root.read(f"{where}/{_MANIFEST}"))
            if manifest["format"] > FORMAT:
                raise FormatTooNew(
                    f"checkpoint {where} has format {manifest['format']}; this Sundog reads {FORMAT}",
                    "upgrade sundog to the version that wrote the run",
                )
            parts = {}
            for name, file in manifest["files"].items():
                data = self._root.read(f"{where}/{file['path']}")
                if hashlib.sha256(data).hexdigest() != file["sha256"]:
                    raise Corrupt(f"checkpoint {where}: {name} does not match its hash")
                parts[name] = data
            return Checkpoint(step, manifest["about"], parts)
        except NotFound as error:
            raise Corrupt(f"checkpoint {where} is half-written: {error.message}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt(f"checkpoint {where} has no readable manifest: {error}") from None

    def latest(
        self, skipped: Callable[[int, str], None] = lambda step, why: None
    ) -> Checkpoint | None:
        """The newest good checkpoint. `skipped(step, why)` hears of each bad one passed over."""
        for step in reversed(self.steps()):
            try:
                return self.read(step)
            except Corrupt as error:
                skipped(step, error.message)
        return None

    def retain(self, newest: int) -> None:
        """Delete what is surplus. The manifest goes first, so none is ever half there."""
        for step in self.surplus(newest):
            self.drop(step)

    def surplus(self, newest: int) -> set[int]:
        """All steps but the `keep` newest up to `newest`, which was just committed.

        What lies beyond it is from before the run went back, and was passed over then: it goes too, or
        it would count among those to keep.
        """
        steps = self.steps()
        good = [s for s in steps if s <= newest and self._committed(s)]
        return set(steps) - set(good[-self._keep :])

    def _committed(self, step: int) -> bool:
        return self._root.exists(f"{self._prefix}/{step}/{_MANIFEST}")

    def drop(self, step: int) -> None:
        self._root.delete(f"{self._prefix}/{step}/{_MANIFEST}")
        self._root.delete_prefix(f"{self._prefix}/{step}/")
