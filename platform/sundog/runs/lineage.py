"""Where a model came from: data, run, code and spec, each by a name that cannot be moved.

Reads git and files; decides nothing.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

from pydantic import BaseModel

_SKIPPED = {"__pycache__", "node_modules", "venv", "build", "dist"}
_MOST_FILES = 2000
_CODE = {".py", ".yaml", ".yml", ".toml", ".txt", ".json"}


def code_version(folder: Path | None = None) -> str:
    """`git:<commit>` of a clean working tree, else `files:<hash>` of the working directory's code."""
    folder = folder or Path.cwd()
    commit = _git(folder, "rev-parse", "HEAD")
    if commit and _git(folder, "status", "--porcelain") == "":
        return f"git:{commit}"
    return f"files:{_hash_of(folder)}"


def spec_hash(spec: BaseModel) -> str:
    """A hash of what was asked for, the same however it was written down."""
    return hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:16]


def lineage(*, data: str | None, run_id: str, spec: BaseModel, **more: Any) -> dict[str, Any]:
    return {
        "data": data, "run": run_id, "code": code_version(), "spec_sha256": spec_hash(spec), **more
    }  # fmt: skip


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _hash_of(folder: Path) -> str:
    found = sorted(
        p for p in folder.rglob("*")
        if p.suffix in _CODE and p.is_file()
        and not any(part.startswith(".") or part in _SKIPPED for part in p.relative_to(folder).parts)
    )[:_MOST_FILES]  # fmt: skip
    digest = hashlib.sha256()
    for path in found:
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
