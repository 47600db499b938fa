"""What runs on the head for `sundog cluster` and `sundog cost`: reports, costs, drains, probes.

Prints one marked line of JSON, since it is reached over SSH, where others print too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

from sundog.capacity.state_file import ledger_path, read_state
from sundog.clock import WALL, Clock
from sundog.errors import ClusterError, SundogError
from sundog.ledger import By, Line, cost, read_entries
from sundog.market.prices import cost_between
from sundog.rayapi.drain import Drains, Gcs, head_address

MARK = "SUNDOG-HEAD "
FORMAT = 1
# A person who drains a node gives its work this long to move; Ray kills nothing when it is over.
DRAIN_S = 600.0


def report(cluster: str, ray: Drains) -> dict[str, Any]:
    """The provider's state and each node's use, by instance id. Either may be missing, with why."""
    said: dict[str, Any] = {"format": FORMAT, "state": read_state(cluster), "used": {}, "ray": {}}
    try:
        for node in ray.nodes():
            said["used"][node.instance_id] = node.used
            said["ray"][node.instance_id] = node.status
    except ClusterError as error:
        said["error"] = error.message
    return said


def drain(instance: str, ray: Drains, clock: Clock = WALL, limit_s: float = DRAIN_S) -> str:
    """Ask Ray to drain the node that the cloud calls `instance`; its node id.

    ClusterError for a node that Ray does not know, and for the head, which nothing can replace.
    """
    nodes = ray.nodes()
    found = [n for n in nodes if instance in (n.instance_id, n.node_id)]
    if len(found) != 1:
        known = ", ".join(sorted(n.instance_id for n in nodes if n.instance_id)) or "none"
        raise ClusterError(f"Ray knows no node {instance!r}", f"it knows: {known}")
    if found[0].node_type == "head":
        raise ClusterError("the head cannot be drained", "sundog cluster down ends the cluster")
    ray.drain(found[0].node_id, clock.now_s() + limit_s, "sundog cluster drain")
    return found[0].node_id


def costs(cluster: str, by: By, clock: Clock = WALL) -> list[Line]:
    """What the cluster's own ledger on this head says. Empty where it writes to a storage root."""
    return cost(read_entries(ledger_path(cluster)), by, clock.now_s(), cost_between)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sundog-onhead", description=__doc__)
    parser.add_argument("what", choices=("report", "cost", "drain", "probe"))
    parser.add_argument(
        "name", help="report, cost: the cluster; drain: the instance; probe: the pool"
    )
    parser.add_argument("--by", choices=get_args(By), default="day")
    parser.add_argument("--nodes", type=int, help="probe: this many of the pool's nodes")
    parser.add_argument("--limit", type=float, default=DRAIN_S, metavar="SECONDS")
    arguments = parser.parse_args(argv)
    try:
        said = _answer(arguments)
    except SundogError as error:
        said = {"format": FORMAT, "error": error.message, "fix": error.fix}
        if arguments.what == "report":
            said |= {"state": read_state(arguments.name), "used": {}, "ray": {}}
    print(MARK + json.dumps(said), flush=True)
    return 0


def _answer(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.what == "cost":
        lines = costs(arguments.name, arguments.by)
        return {"format": FORMAT, "cost": [asdict(x) for x in lines]}
    address = head_address()
    if arguments.what == "probe":
        from sundog.capacity.probe import probe

        found = probe(arguments.name, address=address, most=arguments.nodes)
        return {"format": FORMAT, "probe": found.to_json()}
    ray = Gcs(address)
    if arguments.what == "report":
        return report(arguments.name, ray)
    return {"format": FORMAT, "drained": drain(arguments.name, ray, limit_s=arguments.limit)}


if __name__ == "__main__":
    raise SystemExit(main())
