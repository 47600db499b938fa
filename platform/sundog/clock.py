"""What time it is. Nothing else in the package reads the time, so the simulator can own it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now_s(self) -> float:
        """Unix time in seconds: for records that people and other machines read."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that never go back: for durations and deadlines."""
        ...

    def sleep(self, seconds: float) -> None: ...


class WallClock:
    def now_s(self) -> float:
        return time.time()

    def monotonic_s(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class ManualClock:
    """A clock that moves only when told to. `sleep` moves it."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        return self._now_s

    def monotonic_s(self) -> float:
        return self._now_s

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds}")
        self._now_s += seconds


WALL = WallClock()
