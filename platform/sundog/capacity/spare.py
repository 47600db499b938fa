"""A spare node while this one is only advised to leave: `python -m sundog.capacity.spare --gcs … --node …`.

Asks Ray for room as large as the node, in its pool and elsewhere than on it, so that the autoscaler
launches one if none is free; the room is given back as soon as it is there, and the node stays as
long as idle nodes do. The agent runs this beside itself; the node itself is left alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from sundog.capacity.probe import POOL_LABEL
from sundog.errors import NotFound, SundogError

WAIT_S = 600.0
NODE_LABEL = "ray.io/node-id"
# What a node has besides these is its own: its name, memory that system processes take.
_COUNTED = ("CPU", "GPU")


def room_of(
    nodes: Sequence[Mapping[str, Any]], node_id: str
) -> tuple[dict[str, float], dict[str, str]]:
    """The bundle and the label selector of a node like that one. NotFound.

    `nodes` as `ray.nodes()` lists them.
    """
    own = next((n for n in nodes if n["NodeID"] == node_id), None)
    if own is None:
        raise NotFound(f"Ray knows no node {node_id}", "`ray list nodes` shows them")
    room = {k: float(v) for k, v in own["Resources"].items() if k in _COUNTED and v > 0}
    if not room:
        raise NotFound(f"node {node_id} has neither CPUs nor GPUs", "it needs no spare")
    where = {NODE_LABEL: f"!{node_id}"}
    pool = (own.get("Labels") or {}).get(POOL_LABEL)
    return room, where | ({POOL_LABEL: pool} if pool else {})


def hold(gcs: str, node_id: str, wait_s: float) -> bool:
    """Hold the room until it is there, at most `wait_s` seconds; whether it came."""
    import ray
    from ray.util import placement_group, remove_placement_group

    ray.init(address=gcs, log_to_driver=False, logging_level="error")
    try:
        room, where = room_of(ray.nodes(), node_id)
        group = placement_group([room], bundle_label_selector=[where])
        try:
            return bool(group.wait(wait_s))
        finally:
            remove_placement_group(group)
    finally:
        ray.shutdown()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sundog-spare", description=__doc__)
    parser.add_argument("--gcs", required=True, help="the head's address, host:port")
    parser.add_argument("--node", required=True, help="Ray's id of the node that was advised")
    parser.add_argument("--wait", type=float, default=WAIT_S, metavar="SECONDS")
    arguments = parser.parse_args(argv)
    try:
        came = hold(arguments.gcs, arguments.node, arguments.wait)
    except (SundogError, ConnectionError, ValueError) as error:
        print(json.dumps({"event": "no-spare", "detail": str(error)}), flush=True)
        return 1
    print(json.dumps({"event": "spare-there" if came else "no-spare-in-time"}), flush=True)
    return 0 if came else 1


if __name__ == "__main__":
    sys.exit(main())
