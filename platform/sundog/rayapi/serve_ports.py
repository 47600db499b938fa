"""Keeps the port that Serve opens in every replica on the node's own address.

Private part of Ray Serve: a replica binds the server for calls between deployments to every
interface. It checks Ray's token, but on a loopback cluster it has no business on a network.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import ray
from ray.serve._private import replica as _replica

from sundog.security.exposure import beyond_this_machine

_EVERYWHERE = "[::]:0"

log = logging.getLogger("sundog.replica")


def bind_to_node() -> None:
    """To be called in a replica's constructor, before Serve opens the port."""
    address = ray.util.get_node_ip_address()
    original = _replica.add_port_to_grpc_server
    if getattr(original, "sundog_bound", False):
        return
    if os.environ.get("RAY_AUTH_MODE") != "token" and beyond_this_machine(
        f"[{address}]:0" if ":" in address else f"{address}:0"
    ):
        log.warning(
            "ANYBODY WHO REACHES %s MAY CALL THIS REPLICA: Serve opens a port in each, and Ray asks for "
            "no token. Start Ray with RAY_AUTH_MODE=token on every node, or close the network",
            address,
        )

    def bound(server: Any, where: str) -> int:
        host = f"[{address}]" if ":" in address else address
        return int(original(server, f"{host}:0" if where == _EVERYWHERE else where))

    bound.sundog_bound = True  # type: ignore[attr-defined]
    _replica.add_port_to_grpc_server = bound
