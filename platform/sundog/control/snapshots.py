"""Versioned route snapshots: published when they change, handed to gateways that wait for one.

Keeps who has acknowledged what, so that nothing is taken away that a gateway still routes to.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

from sundog.clock import Clock

GATEWAY_GONE_S = 45.0


class Snapshots:
    """Thread-safe: published by one thread, waited for in any loop, where waiting takes no thread.
    `version` goes on where the stored one left off."""

    def __init__(self, epoch: int, version: int, clock: Clock) -> None:
        self._epoch = epoch
        self._version = version
        self._body: dict[str, Any] | None = None
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: set[Callable[[], object]] = set()
        self._acks: dict[str, tuple[tuple[int, int], float]] = {}

    @property
    def version(self) -> int:
        return self._version

    @property
    def body(self) -> dict[str, Any] | None:
        return self._body

    def publish(self, services: dict[str, Any], keys: list[dict[str, Any]]) -> bool:
        """A new version if anything differs from the last; whether it does."""
        with self._lock:
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
            for wake in self._waiting:
                wake()
            return True

    async def wait(
        self, gateway: str, seen: tuple[int, int], timeout_s: float
    ) -> dict[str, Any] | None:
        """The newest snapshot as soon as it is newer than `seen`; None after `timeout_s`."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(changed.set)

        with self._lock:
            self._acks[gateway] = (seen, self._clock.monotonic_s())
            if (newer := self._newer(seen)) is not None:
                return newer
            self._waiting.add(wake)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await changed.wait()
        finally:
            with self._lock:
                self._waiting.discard(wake)
        with self._lock:
            return self._newer(seen)

    def _newer(self, seen: tuple[int, int]) -> dict[str, Any] | None:
        return self._body if (self._epoch, self._version) > seen else None

    def acknowledged(self, version: int) -> bool:
        """Whether every gateway heard of lately routes by `version` of this epoch or a later one."""
        now = self._clock.monotonic_s()
        with self._lock:
            live = [a for a, at in self._acks.values() if now - at < GATEWAY_GONE_S]
            return all(a >= (self._epoch, version) for a in live)

    def gateways(self) -> list[dict[str, Any]]:
        now = self._clock.monotonic_s()
        with self._lock:
            return [
                {"gateway": g, "epoch": a[0], "version": a[1], "heard_s_ago": round(now - at, 1)}
                for g, (a, at) in self._acks.items()
                if now - at < GATEWAY_GONE_S
            ]
