"""A trace of some steps by torch's profiler, for chrome://tracing or Perfetto, in the run's folder."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import Any

from sundog.errors import SundogError
from sundog.storage.runs import RunFolder

_WARM_STEPS = 5  # before the trace begins: first steps allocate and compile


class Profiler:
    """Called after every step of one worker; traces `steps` of them once and stores the trace.

    `last` is the run's last step: a run that is nearly over is traced without warming up first. A run
    that has a trace already, of an earlier first worker, gets no second one.
    """

    def __init__(self, folder: RunFolder, steps: int, last: int | None = None) -> None:
        self._folder, self._steps = folder, steps
        self._last = float("inf") if last is None else last
        self._seen, self._began = 0, 0
        self._profile: Any = None
        self.done = bool(folder.root.children(folder.key("profile")))

    def __call__(self, step: int, loss: float) -> None:
        if self.done:
            return
        self._seen += 1
        if self._profile is None:
            if self._seen < _WARM_STEPS and step + self._steps < self._last:
                return
            if step >= self._last:
                self.done = True
                print("no profile: the run was over after its first step", flush=True)
                return
            self._begin(step)
        elif step == self._began + self._steps or step >= self._last:
            self._profile.__exit__(None, None, None)
            self.done = True
            self._store(step)

    def _begin(self, step: int) -> None:
        import torch

        kinds = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self._profile, self._began = torch.profiler.profile(activities=kinds), step
        self._profile.__enter__()

    def _store(self, step: int) -> None:
        """`runs/<id>/profile/<last step>.json.gz`; losing it is better than losing the run."""
        with tempfile.TemporaryDirectory() as place:
            path = Path(place, "trace.json")
            self._profile.export_chrome_trace(str(path))
            self._profile = None
            key = self._folder.key(f"profile/{step}.json.gz")
            traced = step - self._began
            try:
                self._folder.root.write(key, gzip.compress(path.read_bytes(), 3))
            except SundogError as error:
                print(f"the profile could not be stored: {error.message}", flush=True)
                return
            fewer = f" (the run had no {self._steps} left)" if traced < self._steps else ""
            print(f"profile of {traced} steps{fewer}: {self._folder.root.uri(key)}", flush=True)
