"""Which process of which machine holds something, and whether that process is certainly gone.

A process is named so that nothing else can be taken for it: a pid is given out again, a machine
starts anew, and containers with one host name count their pids apart. In doubt it is alive.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_ENDED = "ZX"  # killed; its parent has not looked yet


@dataclass(frozen=True)
class ProcessName:
    """`boot` is the kernel's id of this boot, `pids` the pid namespace, `started` the process's
    start in clock ticks after the boot: unlike a time of day it never changes afterwards."""

    host: str
    boot: str
    pids: str
    pid: int
    started: int

    @classmethod
    def own(cls) -> ProcessName | None:
        """This process; None where the system (not Linux) does not tell enough."""
        here, found = _here(), _look(os.getpid())
        return cls(*here, os.getpid(), found[1]) if here and found else None

    @classmethod
    def of(cls, document: object) -> ProcessName | None:
        """From what `vars(…)` gave; None when it is not that."""
        try:
            return cls(**document) if isinstance(document, dict) else None
        except TypeError:
            return None

    @property
    def dead(self) -> bool:
        """Whether it is certainly gone. False for a process of another machine or another boot."""
        if (self.host, self.boot, self.pids) != _here():
            return False
        try:
            os.kill(self.pid, 0)  # 0 sends nothing; unlike /proc it cannot be hidden from us
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # it is there, and somebody else's
        found = _look(self.pid)
        return found is not None and (found[0] in _ENDED or found[1] != self.started)


@lru_cache(maxsize=1)
def _here() -> tuple[str, str, str] | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return platform.node(), boot, str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _look(pid: int) -> tuple[str, int] | None:
    """The state and the start of a process of this pid namespace; None: they cannot be seen."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes().decode(errors="replace")
    except OSError:
        return None
    # The command's name stands in brackets and may hold anything, brackets too.
    fields = stat[stat.rindex(")") + 1 :].split()
    return fields[0], int(fields[19])
