"""Where gateways shall be: their address, how many a node has, and on which nodes. Settings, read.

`SUNDOG_GATEWAY`, `SUNDOG_GATEWAYS` and `SUNDOG_GATEWAY_NODES`, where Ray's head starts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from sundog.errors import ServiceError
from sundog.security.exposure import beyond_this_machine

DEFAULT_ADDRESS = "http://127.0.0.1:8420"
MAX_GATEWAYS = 32
HEAD, ALL = "head", "all"
OWN = "node"
"""The host of an address that stands for each node's own."""


def parse_address(address: str) -> tuple[str, int]:
    """`http://host:port` or `https://…` -> (host, port). Raises ServiceError."""
    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port is None or parts.scheme not in ("http", "https"):
        raise ServiceError(
            f"{address!r} is not an address for the gateway",
            "write SUNDOG_GATEWAY=http://127.0.0.1:8420",
        )
    return host, port


def here(address: str, ip: str) -> str:
    """The address as this node has it: its host `node` is the node's own IP address."""
    schema, mark, rest = address.rpartition("://")
    host, colon, port = rest.rpartition(":")
    if host != OWN:
        return address
    own = f"[{ip}]" if ":" in ip else ip
    return f"{schema}{mark}{own}{colon}{port}"


def default_address() -> str:
    return os.environ.get("SUNDOG_GATEWAY") or DEFAULT_ADDRESS


def default_gateways() -> int:
    """`SUNDOG_GATEWAYS`: how many gateways share a node's address; 1 where nobody says. ServiceError."""
    text = os.environ.get("SUNDOG_GATEWAYS", "1") or "1"
    if not text.isdigit() or not 1 <= int(text) <= MAX_GATEWAYS:
        raise ServiceError(
            f"SUNDOG_GATEWAYS={text!r} is not a number of gateways",
            f"write a number from 1 to {MAX_GATEWAYS}",
        )
    return int(text)


def default_nodes(address: str) -> str:
    """`SUNDOG_GATEWAY_NODES`: `head`, `all`, or the label `NAME=VALUE` of nodes that shall have
    gateways, each at `address`. ServiceError."""
    text = os.environ.get("SUNDOG_GATEWAY_NODES", "") or HEAD
    name, mark, value = text.partition("=")
    if text not in (HEAD, ALL) and not (mark and name and value):
        raise ServiceError(
            f"SUNDOG_GATEWAY_NODES={text!r} does not say which nodes",
            "write head, all, or a label of Ray's such as sundog.pool=web",
        )
    if text != HEAD and not beyond_this_machine(address):
        raise ServiceError(
            f"SUNDOG_GATEWAY_NODES={text} asks for gateways on several nodes, and nobody reaches "
            f"{address} from another machine",
            "write SUNDOG_GATEWAY=http://node:8420 (each node's own address) or http://0.0.0.0:8420",
        )
    return text


def label_of(nodes: str) -> dict[str, str]:
    """Which label a node must have, as Ray selects by it; empty: any node."""
    name, mark, value = nodes.partition("=")
    return {name: value} if mark else {}


def fitting(nodes: str, live: Iterable[Mapping[str, Any]]) -> int:
    """How many of the live nodes (each its labels) shall have gateways; at least one."""
    wanted = label_of(nodes)
    if nodes == HEAD:
        return 1
    return max(1, sum(all(labels.get(k) == v for k, v in wanted.items()) for labels in live))
