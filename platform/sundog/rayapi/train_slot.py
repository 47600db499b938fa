"""What a training worker's process keeps between two groups it is part of.

A Ray Train worker runs its training function in a thread; this is how the controller reaches that
thread, and how the function finds its state again when it is called in the same process. It is the
one piece of module-level state in the package: a process has one training thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

LONGEST_SILENCE_S = 60.0
"""How long a worker waits for another one inside a step before it calls it lost."""


@dataclass
class Slot:
    """`token` names the present group, `ask` is a flag for the loop, `kept` is the loop itself."""

    token: str | None = None
    ask: int = 0
    kept: Any = None


SLOT = Slot()


def begin(token: str, private: Mapping[str, str]) -> None:
    """A new group is about to start in this process. `private` are environment variables that no
    record may hold: they come in a call, which Ray keeps nowhere, and not with the configuration."""
    os.environ.update(private)
    SLOT.token, SLOT.ask = token, 0


def ask(flag: int) -> None:
    """What the loop shall see at its next step."""
    SLOT.ask = flag


def warm(prepare: Callable[[], None], private: Mapping[str, str]) -> str:
    """Do what takes long before this process joins a group; the node that it is on."""
    import ray

    os.environ.update(private)
    prepare()
    return str(ray.get_runtime_context().get_node_id())


def settle() -> None:
    """Return when what this process saves in the background is in the root."""
    saver = getattr(SLOT.kept, "saver", None)
    if saver is not None:
        saver.settle()
