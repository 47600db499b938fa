"""The actor `sundog-control`: its methods are what others may ask; its thread runs the loop.

Started by whoever needs it (client.ensure_control), restarted by Ray. What runs goes on without it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import Any, TypeVar

from sundog.errors import ControlUnavailable

SNAPSHOT_WAIT_S = 20.0

T = TypeVar("T")


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
        return await snapshots.wait(gateway, (epoch, version), SNAPSHOT_WAIT_S)

    async def report(self, gateway: str, counts: dict[str, Any], lanes: dict[str, Any]) -> None:
        """What a gateway served since its last report."""
        self._leading(self._loop.counters).report(gateway, counts, lanes)

    async def limits(self, gateway: str, usage: dict[str, Any]) -> dict[str, Any]:
        """What keys used on a gateway; what they may use there next."""
        return self._leading(self._loop.limits).exchange(gateway, usage)

    async def rollouts(self, verb: str, **arguments: Any) -> Any:
        """rollout | command | start | rollback, as control/services.py says."""
        return await self._do(self._loop.services, verb, arguments)

    async def poke(self) -> None:
        """Something changed: do not wait for the next round."""
        self._loop.poke()

    async def status(self) -> dict[str, Any]:
        return {"state": self._loop.state, "message": self._loop.message, "pid": os.getpid()}

    async def services(self) -> list[dict[str, Any]]:
        return self._leading(self._loop.services).listing()

    async def gateways(self) -> list[dict[str, Any]]:
        return self._loop.snapshots.gateways() if self._loop.snapshots is not None else []

    # -- keys

    async def keys(self, verb: str, **arguments: Any) -> Any:
        """create | listing | rotate | revoke | delete, as control/keys.py says."""
        return await self._do(self._loop.keys, verb, arguments)

    # -- a control that leads has all its parts

    async def _do(self, part: object | None, verb: str, arguments: dict[str, Any]) -> Any:
        answer = await asyncio.to_thread(getattr(self._leading(part), verb), **arguments)
        self._loop.poke()
        return answer

    def _leading(self, part: T | None) -> T:
        if part is None:
            said = f"control is {self._loop.state}: {self._loop.message}"
            raise ControlUnavailable(said, "try again in a moment")
        return part
