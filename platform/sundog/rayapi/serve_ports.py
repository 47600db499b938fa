"""Keeps the port that Serve opens in every replica on the node's own address.

Private part of Ray Serve: a replica binds the server for calls between deployments to every
interface. It checks Ray's token, but on a loopback cluster it has no business on a network.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.serve._private import replica as _replica

_EVERYWHERE = "[::]:0"


def bind_to_node() -> None:
    """To be called in a replica's constructor, before Serve opens the port."""
    address = ray.util.get_node_ip_address()
    original = _replica.add_port_to_grpc_server
    if getattr(original, "sundog_bound", False):
        return

    def bound(server: Any, where: str) -> int:
        host = f"[{address}]" if ":" in address else address
        return int(original(server, f"{host}:0" if where == _EVERYWHERE else where))

    bound.sundog_bound = True  # type: ignore[attr-defined]
    _replica.add_port_to_grpc_server = bound
