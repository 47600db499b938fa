"""The edge of a node as a Serve deployment: keeps one HAProxy in front of the node's gateways.

Serve tells it of gateways, control of services whose requests may be sent twice. Without either
HAProxy goes on as it is; killed, this leaves it to its successor.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import secrets
import shutil
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from sundog.clock import WALL
from sundog.errors import ServiceError
from sundog.rayapi import serve_ports, serve_targets, session
from sundog.security.tls import Certificate, Renewal, certificate_of
from sundog.serving.edge_config import Door, Plan, render
from sundog.serving.gateway import control_snapshots, gateway_name
from sundog.serving.haproxy import Haproxy, keeper_pid
from sundog.serving.places import here, parse_address

WATCH_S = 0.1
RELOAD_AGAIN_S = 2.0
"""After a reload that failed."""
MAX_FOLDER = 75
"""Bytes of the path of the folder with HAProxy's sockets."""

log = logging.getLogger("sundog.edge")


class Front:
    """One HAProxy and what it shall do now. Without Ray; the deployment feeds it."""

    def __init__(self, plan: Plan, keeper: int) -> None:
        self.plan = plan
        self.proxy = Haproxy(plan.folder, keeper)
        self._owner = secrets.token_hex(8)
        self._text = ""
        """What HAProxy shall read; empty: the file that a predecessor left."""
        self._due = False
        """Whether it may not have read that yet."""
        self._again_s = 0.0

    def open(self) -> None:
        """Start, or go on with what a predecessor left. ServiceError, such as for a taken port."""
        make_private(self.plan.folder)
        (self.plan.folder / "owner").write_text(self._owner)
        if self.proxy.adopt():
            # With its gateways, until Serve tells of those that are there. The predecessor may have
            # been killed between writing its file, or placing a certificate, and the reload.
            self._due = True
            return
        self._start()

    def change(self, **what: Any) -> None:
        """Other gateways or services; HAProxy is reloaded if that changes its file, and `keep` tries
        again where that fails. OSError, ServiceError."""
        self.plan = replace(self.plan, **what)
        text = render(self.plan)
        if text != self._text:
            self._text, self._due = text, True
        if self._due and self.proxy.is_alive():
            self._load()

    def _load(self) -> None:
        self._again_s = WALL.monotonic_s() + RELOAD_AGAIN_S
        if self._text:
            self.proxy.write(self._text)
        self.proxy.reload()
        self._due = False

    def _start(self) -> None:
        self._text = render(self.plan)
        self.proxy.write(self._text)
        self.proxy.start()
        self._due = False

    def present(self, certificate: Certificate) -> None:
        """This certificate, from now on. OSError, ServiceError."""
        self.change(certificate=place(certificate, self.plan.folder))

    def keep(self) -> None:
        """Start HAProxy again if it is dead; load what it has not read yet. OSError, ServiceError."""
        if not self.proxy.is_alive():
            log.warning("HAProxy has died; it is started again")
            self._start()
        elif self._due and WALL.monotonic_s() >= self._again_s:
            self._load()

    def close(self) -> None:
        """Stop HAProxy, unless a successor has taken over."""
        owner = self.plan.folder / "owner"
        if owner.exists() and owner.read_text() == self._owner:
            self.proxy.stop()
            shutil.rmtree(self.plan.folder, ignore_errors=True)


def make_private(folder: Path) -> None:
    """The folder, of mode 0700 and ours. ServiceError where somebody else made it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not folder.is_dir() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ServiceError(
            f"{folder} is not a folder that only this user may enter", f"remove it: rm -r {folder}"
        )


def place(certificate: Certificate, folder: Path) -> str:
    """Chain and key as HAProxy reads them, in its folder; their digest. OSError, ServiceError."""
    make_private(folder)
    text = certificate.pem()
    fresh = folder / "tls.new"
    fresh.touch(0o600)
    fresh.write_bytes(text)
    fresh.replace(folder / "tls.pem")
    return hashlib.sha256(text).hexdigest()[:16]


class Edge:
    """The Serve deployment. `config`: {address}; `gateways`: the deployment behind it."""

    def __init__(self, config: dict[str, Any], gateways: Any = None) -> None:
        serve_ports.bind_to_node()
        self._app = config["app"]
        self._node, ip = session.node()
        address = here(config["address"], ip)
        host, port = parse_address(address)
        # Of Rays on one machine whose nodes have an address each, so has each edge its folder.
        name = str(port) if address == config["address"] else f"{port}-{host.rpartition('.')[2]}"
        plan = Plan(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}", folder_of(name),
            grpc=here(os.environ.get("SUNDOG_GATEWAY_GRPC", ""), ip),
            threads=max(1, min(4, (os.cpu_count() or 1) // 4)),
        )  # fmt: skip
        certificate = certificate_of(config["address"])
        if certificate is not None:
            plan = replace(plan, certificate=place(certificate, plan.folder))
        self._front = Front(plan, keeper_pid())
        self._renewal = Renewal(certificate, [self._front.present]) if certificate else None
        self._front.open()
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sundog-edge", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            asyncio.run(self._follow())
        except BaseException as error:
            self._failure = error
            log.error("the edge's watch has ended, Serve has to replace it", exc_info=error)

    async def _follow(self) -> None:
        following = [
            asyncio.create_task(
                serve_targets.watch(self._app, "Gateway", self._on_gateways), name="Serve's news"
            ),
            asyncio.create_task(self._follow_control(), name="control's news"),
        ]
        if self._renewal is not None:
            renewing = self._renewal.look_forever()
            following.append(asyncio.create_task(renewing, name="the certificate's renewal"))
        while not self._stop.is_set():
            self._try(self._front.keep)
            for task in following:
                if task.done():
                    task.result()
                    raise ServiceError(f"{task.get_name()} came to an end")
            await asyncio.sleep(WATCH_S)
        for task in following:
            task.cancel()

    def _on_gateways(self, replicas: list[Any]) -> None:
        doors = tuple(sorted(d for r in replicas if (d := door_of(r, self._node)) is not None))
        if doors:  # none at all is news of a start, not of a place to send to
            self._try(lambda: self._front.change(doors=doors))

    async def _follow_control(self) -> None:
        seen = [(0, 0)]
        async for snapshot in control_snapshots(f"edge/{gateway_name()}", lambda: seen[-1]):
            seen[:] = [(snapshot["epoch"], snapshot["version"])]
            names = (n for n, s in snapshot["services"].items() if s["idempotent"])
            repeatable = tuple(sorted(names))
            if repeatable != self._front.plan.repeatable:
                self._try(lambda r=repeatable: self._front.change(repeatable=r))  # type: ignore[misc]

    def _try(self, action: Any) -> None:
        try:
            action()
        except (OSError, ServiceError) as error:
            log.error("%s", error)

    def reconfigure(self, config: dict[str, Any]) -> None:
        """The deployment's digest rides in `user_config`; there is nothing to change in place."""

    def check_health(self) -> None:
        if not self._thread.is_alive():
            raise ServiceError(f"the edge's watch has ended: {self._failure}")

    async def __del__(self) -> None:
        stop = getattr(self, "_stop", None)
        if stop is None:
            return
        stop.set()
        await asyncio.to_thread(self._thread.join, 5.0)
        await asyncio.to_thread(self._front.close)


def door_of(replica: Any, node: str) -> Door | None:
    """A gateway replica's sockets, where they are on this node."""
    path = str(replica.metadata.get("sundog_gateway", ""))
    if not path or replica.node_id != node:
        return None
    name = "".join(c if c.isalnum() else "-" for c in replica.replica_id)
    return Door(f"g-{name}", path, str(replica.metadata.get("sundog_gateway_grpc", "")))


def folder_of(name: str) -> Path:
    """The same for every edge of this port on this node, so that a successor finds it.

    In Ray's session where its path leaves room for a socket: 107 bytes, of which HAProxy wants some
    while it binds.
    """
    inside = Path(session.sockets_dir() or "/") / f"sundog-edge-{name}"
    if session.sockets_dir() is not None and len(str(inside)) <= MAX_FOLDER:
        return inside
    return Path(tempfile.gettempdir()) / f"sundog-edge-{os.getuid()}-{name}"
