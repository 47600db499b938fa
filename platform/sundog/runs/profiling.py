"""A trace of some steps by torch's profiler, for chrome://tracing or Perfetto, in the run's folder."""

from __future__ import annotations

import gzip
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from sundog.errors import SundogError
from sundog.storage.runs import RunFolder

_WARM_STEPS = 5  # before the trace begins: first steps allocate and compile


class Profiler:
    """Called after every step of one worker; traces `steps` of them once and stores the trace."""

    def __init__(self, folder: RunFolder, steps: int) -> None:
        self._folder, self._steps = folder, steps
        self._seen = 0
        self._profile: Any = None
        self.done = False

    def __call__(self, step: int, loss: float) -> None:
        import torch

        if self.done:
            return
        self._seen += 1
        if self._seen == _WARM_STEPS:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                kinds.append(torch.profiler.ProfilerActivity.CUDA)
            self._profile = torch.profiler.profile(activities=kinds)
            self._profile.__enter__()
        elif self._seen == _WARM_STEPS + self._steps:
            self._profile.__exit__(None, None, None)
            self.done = True
            self._store(step)

    def _store(self, step: int) -> None:
        """`runs/<id>/profile/<last step>.json.gz`; losing it is better than losing the run."""
        with tempfile.TemporaryDirectory() as place:
            path = Path(place, "trace.json")
            self._profile.export_chrome_trace(str(path))
            self._profile = None
            key = self._folder.key(f"profile/{step}.json.gz")
            with suppress(SundogError):
                self._folder.root.write(key, gzip.compress(path.read_bytes(), 3))
                print(f"profile of {self._steps} steps: {self._folder.root.uri(key)}", flush=True)
