"""Somebody else's training script, unchanged, on nodes that go: started elsewhere when its node leaves.

Knows nothing of the script but how to start it and to ask it to stop (SIGTERM, at which Lightning
saves, and Hugging Face's Trainer can be told to); what it goes on from is its own checkpoint.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sundog.clock import WALL, Clock
from sundog.errors import RunError
from sundog.rayapi import train_nodes

_LOOK_EVERY_S = 0.5
_HEALTHY_S = 600.0  # a script that ran so long may fail again as often as a fresh one
_LONGEST_PAUSE_S = 30.0
_NOT_STARTED = 127  # as a shell says it
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
# Looked up here: between fork and exec nothing may be imported.
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)


@dataclass(frozen=True)
class Guarded:
    """What to run and how patiently. `grace_s` is between SIGTERM and SIGKILL."""

    command: tuple[str, ...]
    resources: Mapping[str, float] = field(default_factory=lambda: {"CPU": 1.0})
    restarts: int = 3
    grace_s: float = 60.0
    environment: Mapping[str, str] = field(default_factory=dict)


class Runner:
    """An actor beside which the script runs, on its node, in the job's working directory."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._lines: deque[str] = deque(maxlen=10_000)
        self._process: subprocess.Popen[str] | None = None
        try:
            # Its own group: what the script starts is asked to stop with it.
            self._process = subprocess.Popen(
                list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env={**os.environ, **environment}, start_new_session=True, errors="replace",
                preexec_fn=_end_with_parent,
            )  # fmt: skip
        except OSError as error:
            self._lines.append(f"{command[0]}: {error.strerror}")
            return
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def node(self) -> str:
        import ray

        found: str = ray.get_runtime_context().get_node_id()
        return found

    def look(self) -> tuple[int | None, list[str]]:
        """Its exit code, None while it runs, and what it printed since the last look."""
        code = _NOT_STARTED if self._process is None else self._process.poll()
        if code is not None and self._process is not None:
            self._reader.join(timeout=5)
        return code, [self._lines.popleft() for _ in range(len(self._lines))]

    def stop(self, number: int) -> None:
        """Send this signal to the script and to whatever it has started."""
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line.rstrip("\n"))


def _end_with_parent() -> None:
    """Linux: the script must not outlive an actor that was killed, and hold its node's GPU."""
    if _PRCTL is not None:
        _PRCTL(_DEATH_SIGNAL, signal.SIGKILL)


class Guard:
    """Starts the script, watches its node, and starts it again elsewhere. Needs Ray."""

    def __init__(
        self, what: Guarded, *, say: Callable[[str], None] = print, clock: Clock = WALL
    ) -> None:
        self._what, self._say, self._clock = what, say, clock
        self._failures = 0
        self.starts = 0

    def run(self) -> None:
        """Until the script ends with 0. RunError when it failed more than `restarts` times."""
        while True:
            began_s = self._clock.monotonic_s()
            why, code = self._once()
            if why == "ended" and code == 0:
                return
            if why == "notice":
                self._say("it starts again on another node")
                continue  # no fault of its own
            if self._clock.monotonic_s() - began_s > _HEALTHY_S:
                self._failures = 0
            self._failures += 1
            how = "its node was lost" if why == "lost" else f"it ended with code {code}"
            if self._failures > self._what.restarts:
                raise RunError(
                    f"{' '.join(self._what.command)}: {how}, after {self._what.restarts} restarts",
                    "its own output above says why; more patience: --restarts",
                )
            pause_s = min(_LONGEST_PAUSE_S, 2.0 ** (self._failures - 1))
            self._say(f"{how}: restart {self._failures} of {self._what.restarts} in {pause_s:g} s")
            self._clock.sleep(pause_s)

    def _once(self) -> tuple[str, int | None]:
        """One life of the script: how it ended (ended, notice, lost) and its exit code."""
        import ray
        from ray.exceptions import RayError

        resources = dict(self._what.resources)
        actor = ray.remote(
            num_cpus=resources.pop("CPU", 0), num_gpus=resources.pop("GPU", 0), resources=resources,
        )(Runner).remote(self._what.command, self._about())  # fmt: skip
        self.starts += 1
        try:
            node = ray.get(actor.node.remote())
            kill_at_s: float | None = None
            while True:
                code, lines = ray.get(actor.look.remote())
                for line in lines:
                    self._say(line)
                if code is not None:
                    # Told to stop, a script may well end with 0 and not be done: it starts again,
                    # and finds by its own checkpoint whether anything is left.
                    return ("ended" if kill_at_s is None else "notice"), code
                kill_at_s = self._watch(actor, node, kill_at_s)
                self._clock.sleep(_LOOK_EVERY_S)
        except RayError:
            return "lost", None
        finally:
            ray.kill(actor)

    def _watch(self, actor: Any, node: str, kill_at_s: float | None) -> float | None:
        """Ask the script to stop when its node is draining; kill it when it does not in time."""
        now_s = self._clock.now_s()
        if kill_at_s is None:
            deadline_s = train_nodes.leaving().get(node)
            if deadline_s is None:
                return None
            grace_s = self._what.grace_s
            if deadline_s:
                grace_s = max(0.0, min(grace_s, deadline_s - now_s))
            self._say(f"a notice to its node: SIGTERM, and {grace_s:.0f} s to save")
            actor.stop.remote(int(signal.SIGTERM))
            return now_s + grace_s
        if now_s > kill_at_s:
            actor.stop.remote(int(signal.SIGKILL))
        return kill_at_s

    def _about(self) -> dict[str, str]:
        """The script may want to know that it is not the first."""
        return {**self._what.environment, "SUNDOG_RESTART": str(self.starts)}
