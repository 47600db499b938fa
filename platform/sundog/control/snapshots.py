"""Versioned route snapshots: published when they change, handed to gateways that wait for one.

Keeps who has acknowledged what, so that nothing is taken away that a gateway still routes to.
"""

from __future__ import annotations

import threading
from typing import Any

from sundog.clock import Clock

GATEWAY_GONE_S = 45.0


class Snapshots:
    """Thread-safe. `version` goes on where the stored one left off."""

    def __init__(self, epoch: int, version: int, clock: Clock) -> None:
        self._epoch = epoch
        self._version = version
        self._body: dict[str, Any] | None = None
        self._clock = clock
        self._changed = threading.Condition()
        self._acks: dict[str, tuple[tuple[int, int], float]] = {}

    @property
    def version(self) -> int:
        return self._version

    @property
    def body(self) -> dict[str, Any] | None:
        return self._body

    def publish(self, services: dict[str, Any], keys: list[dict[str, Any]]) -> bool:
        """A new version if anything differs from the last; whether it does."""
        with self._changed:
            old = self._body
            if old is not None and old["services"] == services and old["keys"] == keys:
                return False
            self._version += 1
            self._body = {
                "format": 1,
                "epoch": self._epoch,
                "version": self._version,
                "services": services,
                "keys": keys,
            }
            self._changed.notify_all()
            return True

    def wait(self, gateway: str, seen: tuple[int, int], timeout_s: float) -> dict[str, Any] | None:
        """The newest snapshot as soon as it is newer than `seen`; None after `timeout_s`."""
        with self._changed:
            self._acks[gateway] = (seen, self._clock.monotonic_s())
            self._changed.wait_for(lambda: self._newer(seen), timeout_s)
            return self._body if self._newer(seen) else None

    def _newer(self, seen: tuple[int, int]) -> bool:
        return self._body is not None and (self._epoch, self._version) > seen

    def acknowledged(self, version: int) -> bool:
        """Whether every gateway heard of lately routes by `version` of this epoch or a later one."""
        now = self._clock.monotonic_s()
        with self._changed:
            live = [a for a, at in self._acks.values() if now - at < GATEWAY_GONE_S]
            return all(a >= (self._epoch, version) for a in live)

    def gateways(self) -> list[dict[str, Any]]:
        now = self._clock.monotonic_s()
        with self._changed:
            return [
                {"gateway": g, "epoch": a[0], "version": a[1], "heard_s_ago": round(now - at, 1)}
                for g, (a, at) in self._acks.items()
                if now - at < GATEWAY_GONE_S
            ]
