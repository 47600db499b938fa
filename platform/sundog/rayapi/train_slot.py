"""What a training worker's process keeps between two groups it is part of.

A Ray Train worker runs its training function in a thread; this is how the controller reaches that
thread, and how the function finds its state again when it is called in the same process. It is the
one piece of module-level state in the package: a process has one training thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Slot:
    """`token` names the present group, `ask` is a flag for the loop, `kept` is the loop itself."""

    token: str | None = None
    ask: int = 0
    kept: Any = None


SLOT = Slot()


def begin(token: str) -> None:
    """A new group is about to start in this process."""
    SLOT.token, SLOT.ask = token, 0


def ask(flag: int) -> None:
    """What the loop shall see at its next step."""
    SLOT.ask = flag


def warm(prepare: Callable[[], None]) -> str:
    """Do what takes long before this process joins a group; the node that it is on."""
    import ray

    prepare()
    return str(ray.get_runtime_context().get_node_id())


def settle() -> None:
    """Return when what this process saves in the background is in the root."""
    saver = getattr(SLOT.kept, "saver", None)
    if saver is not None:
        saver.settle()
