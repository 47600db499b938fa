"""The loop over the controllers, under the store's lease: acquire, step each in order, renew.

One controller's failure is logged and does not stop the others; a lost lease stops them all.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
from pathlib import Path
from typing import Any

from sundog.clock import WALL
from sundog.control.applications import GatewayPlace
from sundog.control.counters import Counters
from sundog.control.keys import Keys
from sundog.control.limits import Limits
from sundog.control.rollout import Rollouts
from sundog.control.scaling import Scaler
from sundog.control.services import ServicesController
from sundog.control.signals import Signals
from sundog.control.snapshots import Snapshots
from sundog.control.webhook import Outbox
from sundog.errors import ClusterError, LeaseHeld, LeaseLost, StorageUnavailable
from sundog.rayapi.cluster import leaving_nodes
from sundog.rayapi.kv import get_config
from sundog.serving.places import default_address, default_gateways, default_nodes
from sundog.storage.process import ProcessName
from sundog.storage.root import open_root
from sundog.store import Lease, Store, open_store

ROUND_S = 0.5
RENEW_S = 2.0

log = logging.getLogger("sundog.control")


def store_url(config: dict[str, Any], root: str | None) -> str:
    """Where the store is: the cluster's record, SUNDOG_STORE, or a file in a local root."""
    url = config.get("store") or os.environ.get("SUNDOG_STORE")
    if url:
        return str(url)
    opened = open_root(root)
    if not opened.is_local:
        raise ClusterError(
            f"the storage root {opened.url} is not a local folder, so the store needs a place",
            "set SUNDOG_STORE=postgresql://… (or sqlite:////absolute/path.db on the head's disk)",
        )
    return f"sqlite:///{Path(opened.local_path('control.db'))}"


class Loop:
    """Leads whenever the lease can be had. The attributes are for reading from other threads."""

    def __init__(self) -> None:
        self.state = "starting"
        self.message = ""
        self.services: ServicesController | None = None
        self.snapshots: Snapshots | None = None
        self.keys: Keys | None = None
        self.limits: Limits | None = None
        self.counters: Counters | None = None
        self._outbox: Outbox | None = None
        self._wake = threading.Event()

    def poke(self) -> None:
        self._wake.set()

    def run(self) -> None:
        while True:
            try:
                self._lead()
            except LeaseHeld as error:
                self._say("standby", str(error))
            except LeaseLost as error:
                self._say("standby", str(error))
            except Exception as error:
                self._say("failed", str(error))
                log.exception("control cannot lead")
            WALL.sleep(1.0)

    def _lead(self) -> None:
        config = get_config() or {}
        root = config.get("root") or os.environ.get("SUNDOG_ROOT")
        store = open_store(store_url(config, root))
        signals = Signals(WALL)
        try:
            lease = store.acquire(holder(), is_dead)
            version, _ = store.snapshot("routes")
            self.snapshots = Snapshots(lease.epoch, version, WALL)
            self.limits = Limits(store, lease, WALL)
            self.keys = Keys(store, lease, WALL, self.limits)
            self.counters = Counters(WALL)
            address = config.get("gateway") or default_address()
            gateways = config.get("gateways") or default_gateways()
            signals.start()
            self._outbox = Outbox(store, lease, WALL)
            rollouts = Rollouts(store, lease, self.counters, WALL, self._outbox.add, leaving_nodes)
            self.services = ServicesController(
                store, lease, self.snapshots, rollouts,
                Scaler(store, lease, self.counters, signals, WALL), root,
                GatewayPlace(address, gateways, default_nodes(address)), WALL,
            )  # fmt: skip
            self._say("leading", "")
            self._loop(store, lease)
        finally:
            signals.stop()
            store.close()

    def _loop(self, store: Store, lease: Lease) -> None:
        renewed_s = WALL.monotonic_s()
        controllers = [self.services]
        while True:
            if WALL.monotonic_s() - renewed_s > RENEW_S:
                store.renew(lease)
                renewed_s = WALL.monotonic_s()
            for controller in controllers:
                assert controller is not None
                try:
                    controller.step()
                except LeaseLost:
                    raise
                except Exception as error:
                    self.message = f"{controller.name}: {error}"
                    log.exception("controller %s failed; next round in a moment", controller.name)
                else:
                    self.message = ""
            self._keep_rest()
            self._wake.wait(ROUND_S)
            self._wake.clear()

    def _keep_rest(self) -> None:
        assert self.limits is not None
        assert self._outbox is not None
        for what, keep in (("what keys used", self.limits.keep), ("webhooks", self._outbox.step)):
            try:
                keep()
            except StorageUnavailable as error:  # tried again in the next round
                log.warning("%s: not written down: %s", what, error)

    def _say(self, state: str, message: str) -> None:
        if (state, message) != (self.state, self.message):
            log.info("control is %s %s", state, message)
        self.state, self.message = state, message


def holder() -> str:
    """Who holds the lease: this process, named so that its death can be seen on the same machine."""
    me = ProcessName.own()
    if me is None:
        return f"{platform.node()} {os.getpid()}"
    return f"{me.host} {me.pid} {me.started} {me.pids} {me.boot}"


def is_dead(other: str) -> bool:
    """Whether that holder ran on this very machine and its process is gone."""
    try:
        host, pid, started, pids, boot = other.split(" ")
        return ProcessName(host, boot, pids, int(pid), int(started)).dead
    except ValueError:  # of a system that does not tell, or an earlier Sundog's
        return False
