"""The file on the head in which the provider says what it waits for and why."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def state_path(cluster: str) -> Path:
    """On the head: the provider's state. `SUNDOG_STATE_DIR` moves it."""
    folder = os.environ.get("SUNDOG_STATE_DIR") or str(Path.home() / ".sundog" / "capacity")
    return Path(folder) / f"{cluster}.json"


def ledger_path(cluster: str) -> Path:
    """On the head: the ledger of a cluster that has no storage root."""
    return state_path(cluster).with_suffix(".ledger.jsonl")


def write_state(cluster: str, state: dict[str, Any]) -> None:
    """Replace the file at once, so that a reader never sees half of it. OSError on a full disk."""
    path = state_path(cluster)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".state-")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(json.dumps(state, indent=1))
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)  # a full disk would be left fuller by every try
        raise


def read_state(cluster: str) -> dict[str, Any] | None:
    """The state, or None where the provider has not said anything yet (or half a file was left)."""
    try:
        found = json.loads(state_path(cluster).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
