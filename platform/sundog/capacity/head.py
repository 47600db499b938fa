"""Asks the head of a cluster over SSH, with the `ray exec` that the compiled file already works with."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sundog.capacity import commands
from sundog.capacity.onhead import MARK
from sundog.errors import ClusterError
from sundog.spec.cluster import ClusterSpec

LIMIT_S = 60.0

Run = Callable[[list[str], float], tuple[int, str, str]]


def _run(command: list[str], limit_s: float) -> tuple[int, str, str]:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return 124, "", f"no answer within {limit_s:.0f} s"
    return done.returncode, done.stdout, done.stderr


class Head:
    """The head of the cluster of a compiled file. ClusterError whenever it cannot be reached."""

    def __init__(self, compiled: Path, spec: ClusterSpec, run: Run = _run) -> None:
        self.compiled, self.spec, self._run = compiled, spec, run

    def text(self, command: str, limit_s: float = LIMIT_S) -> str:
        """What a shell command prints on the head."""
        ray = str(Path(sys.executable).parent / "ray")
        code, out, err = self._run(
            [ray, "exec", str(self.compiled), f"{commands.exports(self.spec)} {command}"], limit_s
        )
        if code:
            lines = [x for x in (err + "\n" + out).splitlines() if x.strip()]
            last = lines[-1].strip()[:300] if lines else ""
            raise ClusterError(
                f"the head was not reached (`ray exec` ended with {code}): {last}",
                "is the cluster up, and does ssh in its spec let you in?",
            )
        return out

    def ask(self, *words: str, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """The answer of `sundog.capacity.onhead` there. ClusterError with what it said went wrong."""
        asked = " ".join(shlex.quote(w) for w in words)
        out = self.text(f"python3 -m sundog.capacity.onhead {asked}", limit_s)
        line = next((x for x in out.splitlines() if x.strip().startswith(MARK)), None)
        if line is None:
            raise ClusterError("the head gave no answer", "does it run this Sundog?")
        try:
            said = json.loads(line.strip().removeprefix(MARK))
        except ValueError as error:
            raise ClusterError(f"the head's answer is broken: {error}") from None
        return dict(said)
