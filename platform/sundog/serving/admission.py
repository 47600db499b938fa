"""Whether one more request can still be answered in time: refuse early rather than let all wait.

Pure: told when answers come and how many wait, it estimates how long the queue is. Where the service
names a latency, that is the bound; a refusal costs microseconds, an answer nobody waits for a call.
"""

from __future__ import annotations

_WEIGHT = 0.1
_SHORT = 2
"""Calls for each replica that are always let in: without answers there is nothing to learn from."""


class Pace:
    """Seconds that each queued call adds to the wait, from the spacing of answers under load."""

    __slots__ = ("_busy_since_s", "_last_s", "call_s", "service_s")

    def __init__(self) -> None:
        self.call_s = 0.0
        self.service_s = 0.0
        """how long a frame is with a replica"""
        self._last_s = 0.0
        self._busy_since_s: float | None = None

    def queued(self, now_s: float) -> None:
        """A call came; what follows is under load until `answered` says otherwise."""
        if self._busy_since_s is None:
            self._busy_since_s = now_s

    def answered(self, calls: int, sent_s: float, now_s: float, waiting: bool) -> None:
        """A frame of `calls` came back; `waiting`: others still wait or are under way."""
        since_s = self._last_s if self._busy_since_s is None else self._busy_since_s
        since_s = max(since_s, self._last_s)
        self._last_s = now_s
        self.call_s = _towards(self.call_s, (now_s - since_s) / calls)
        self.service_s = _towards(self.service_s, now_s - sent_s)
        if not waiting:
            self._busy_since_s = None

    def wait_s(self, ahead: int) -> float:
        """When a call with so many ahead of it would be answered, from now."""
        return ahead * self.call_s + self.service_s


class FirstParts:
    """Answers in parts that have not begun. How many a replica begins at once is the model's affair, so
    nothing is estimated: it counts how long first parts took lately."""

    __slots__ = ("mean_s", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self.mean_s = 0.0

    def began(self, seconds: float) -> None:
        """A first part came so long after its request."""
        self.mean_s = _towards(self.mean_s, seconds)

    def refuse_after_s(self, replicas: int, bound_s: float) -> float | None:
        """When to come back, while first parts take longer than `bound_s`; None: let it in."""
        if self.waiting < _SHORT * replicas or not replicas:
            return None
        return self.mean_s if self.mean_s > bound_s else None


def _towards(old: float, new: float) -> float:
    return old + _WEIGHT * (new - old) if old else new


def refuse_after_s(pace: Pace, ahead: int, replicas: int, bound_s: float) -> float | None:
    """When to come back, for a call that would wait beyond `bound_s`; None: let it in."""
    if ahead < _SHORT * replicas or not replicas:
        return None
    wait_s = pace.wait_s(ahead)
    return wait_s - bound_s if wait_s > bound_s else None
