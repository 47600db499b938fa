"""The actor `sundog-control`: its methods are what others may ask; its thread runs the loop.

Started by whoever needs it (client.ensure_control), restarted by Ray. What runs goes on without it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import Any

from sundog.errors import ControlUnavailable

SNAPSHOT_WAIT_S = 20.0


class Control:
    """Async, so that many gateways can wait for snapshots at once; the loop has its own thread."""

    def __init__(self) -> None:
        # Imported here: whoever only starts the actor needs none of what it runs on.
        from sundog.control.loop import Loop

        logging.basicConfig(format="%(asctime)s %(name)s %(message)s")
        logging.getLogger("sundog").setLevel(logging.INFO)
        self._loop = Loop()
        threading.Thread(target=self._loop.run, name="sundog-control", daemon=True).start()

    async def snapshot(self, gateway: str, epoch: int, version: int) -> dict[str, Any] | None:
        """The newest snapshot once it is newer than (epoch, version); None after a while."""
        snapshots = self._loop.snapshots
        if snapshots is None:
            await asyncio.sleep(0.05)
            return None
        seen = (epoch, version)
        return await asyncio.to_thread(snapshots.wait, gateway, seen, SNAPSHOT_WAIT_S)

    async def report(self, gateway: str, counts: dict[str, Any], lanes: dict[str, Any]) -> None:
        """What a gateway served since its last report."""
        counters = self._loop.counters
        if counters is None:
            raise ControlUnavailable("control does not lead yet", "report again")
        counters.report(gateway, counts, lanes)

    async def limits(self, gateway: str, usage: dict[str, Any]) -> dict[str, Any]:
        """What keys used on a gateway; what they may use there next."""
        limits = self._loop.limits
        if limits is None:
            raise ControlUnavailable("control does not lead yet", "ask again")
        return limits.exchange(gateway, usage)

    async def rollouts(self, verb: str, **arguments: Any) -> Any:
        """rollout | command | start | rollback, as control/services.py says."""
        services = self._loop.services
        if services is None:
            raise ControlUnavailable(
                f"control is {self._loop.state}: {self._loop.message}", "try again in a moment"
            )
        answer = await asyncio.to_thread(getattr(services, verb), **arguments)
        self._loop.poke()
        return answer

    async def poke(self) -> None:
        """Something changed: do not wait for the next round."""
        self._loop.poke()

    async def status(self) -> dict[str, Any]:
        return {"state": self._loop.state, "message": self._loop.message, "pid": os.getpid()}

    async def services(self) -> list[dict[str, Any]]:
        if self._loop.services is None:
            raise ControlUnavailable(
                f"control is {self._loop.state}: {self._loop.message}", "try again in a moment"
            )
        return self._loop.services.listing()

    async def gateways(self) -> list[dict[str, Any]]:
        return self._loop.snapshots.gateways() if self._loop.snapshots is not None else []

    # -- keys

    async def keys(self, verb: str, **arguments: Any) -> Any:
        """create | listing | rotate | revoke | delete, as control/keys.py says."""
        keys = self._loop.keys
        if keys is None:
            raise ControlUnavailable(
                f"control is {self._loop.state}: {self._loop.message}", "try again in a moment"
            )
        answer = await asyncio.to_thread(getattr(keys, verb), **arguments)
        self._loop.poke()
        return answer
