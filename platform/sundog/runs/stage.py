"""A node's own disk: where a checkpoint lies until the storage root has it.

A save is safe from the end of a process as soon as it is on the disk, long before a large one is uploaded;
the run that starts again on this node goes on from there. Only for roots that are elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sundog.clock import WALL
from sundog.errors import StorageUnavailable
from sundog.storage.root import Root, arriving, file_digest

VARIABLE = "SUNDOG_STAGE"
"""The folder, where the node has a faster or larger disk than the one of its temporary files."""

_INSTANCE_STORES = ("/opt/dlami/nvme", "/mnt/disks/local", "/mnt/nvme")
_FORGOTTEN_S = 7 * 86400.0  # a run that did not come back for so long will not


def place() -> Path:
    """This user's folder on the fastest disk of the node, made if it is missing. OSError."""
    own = f"sundog-stage-{os.getuid()}"
    stores = [p for p in map(Path, _INSTANCE_STORES) if p.is_mount() and os.access(p, os.W_OK)]
    stores.append(Path(tempfile.gettempdir()))
    base = os.environ.get(VARIABLE) or stores[0]
    folder = Path(base) / own
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # What is read back from here is trusted: nobody else may put it there.
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o022:
        raise PermissionError(f"{folder} is not this user's own folder")
    return folder


@dataclass(frozen=True)
class Staged:
    """A checkpoint on this node's disk."""

    step: int
    path: Path
    about: Mapping[str, Any]


class Stage:
    """The checkpoints of one run that are on this node's disk and not yet in the root."""

    def __init__(self, root: Root, prefix: str) -> None:
        self._root, self._prefix = root, prefix
        name = hashlib.sha256(f"{root.url}/{prefix}".encode()).hexdigest()[:16]
        self._folder = place() / name
        _forget_old(self._folder.parent)

    @classmethod
    def of(cls, root: Root, prefix: str) -> Stage | None:
        """None where the root is a disk itself, or this node's cannot be used."""
        if root.is_local:
            return None
        try:
            return cls(root, prefix)
        except OSError as error:
            print(f"checkpoints go from memory to {root.url}, not over this node's disk: {error}")
            return None

    def write(self, step: int, state: Mapping[str, Any], about: Mapping[str, Any]) -> Path | None:
        """The file that has the state, as `torch.save` writes it. None: this disk is full, say."""
        try:
            return self._write(step, state, about)
        except (StorageUnavailable, RuntimeError) as error:  # of the disk, of torch about the disk
            print(f"checkpoint {step} goes from memory to {self._root.url}: {error}")
            return None

    def _write(self, step: int, state: Mapping[str, Any], about: Mapping[str, Any]) -> Path:
        path = self._folder / f"{step}-{os.getpid()}.pt"
        with arriving(path.name, path) as part:
            torch.save(state, part)
        manifest = {"step": step, "sha256": file_digest(path), "about": dict(about)}
        with arriving(path.name, path.with_suffix(".json")) as part:
            part.write_text(json.dumps(manifest))
        return path

    def newest(self) -> Staged | None:
        """The newest whole one whose part of the ledger the root has."""
        for path in sorted(self._folder.glob("*.json"), key=_step, reverse=True):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                found = json.loads(path.read_text())
                data, ledger = path.with_suffix(".pt"), found["about"]["ledger"]
                if file_digest(data) == found["sha256"] and all(map(self._has, ledger)):
                    return Staged(int(found["step"]), data, found["about"])
        return None

    def _has(self, segment: str) -> bool:
        return self._root.exists(f"{self._prefix}/ledger/{segment}")

    def drop(self, step: int) -> None:
        """The root has this step: what is as old and is not being uploaded by others can go."""
        for path in list(self._folder.glob("*-*.*")):
            writer = int(path.stem.split("-")[1])
            if _step(path) <= step and (writer == os.getpid() or not _lives(writer)):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another one is there
            self._folder.rmdir()


def _step(path: Path) -> int:
    return int(path.stem.split("-")[0])


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() if Path("/proc").exists() else True


def _forget_old(folder: Path) -> None:
    before_s = WALL.now_s() - _FORGOTTEN_S
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < before_s:
                shutil.rmtree(path, ignore_errors=True)
