"""What `ray up` does once before the first node: the security group, keys, subnets, roles.

Our part first (nothing open but what the spec says), then Ray's own bootstrap for the cloud.
"""

from __future__ import annotations

import copy
import os
from typing import Any


def bootstrap(cluster_config: dict[str, Any]) -> dict[str, Any]:
    """The resolved cluster file that goes to the head."""
    from ray.autoscaler._private.providers import _get_node_provider_cls

    config = copy.deepcopy(cluster_config)
    ours = config["provider"]["sundog"]
    if ours.get("cloud", "aws") != "aws":
        # Ray's bootstrap makes the rest (keys, network, roles), and reads only its own fields.
        config["provider"]["type"] = ours["cloud"]
        resolved = dict(_get_node_provider_cls({"type": ours["cloud"]}).bootstrap_config(config))
        resolved["provider"]["type"] = "external"
        return resolved
    from sundog.clouds.aws_network import ensure_placement_groups, ensure_security_group

    types = config["available_node_types"]
    if any("SecurityGroupIds" not in t["node_config"] for t in types.values()):
        head = types[config["head_node_type"]]["node_config"]
        group = ensure_security_group(
            config["provider"]["region"], ours.get("endpoint"), config["cluster_name"],
            list(head.get("SubnetIds") or ()), list(ours.get("ssh_open_to") or ()),
        )  # fmt: skip
        for node_type in types.values():
            node_type["node_config"].setdefault("SecurityGroupIds", [group])
    groups = {t["node_config"].get("Placement", {}).get("GroupName") for t in types.values()} - {
        None
    }
    if groups:
        ensure_placement_groups(
            config["provider"]["region"], ours.get("endpoint"), config["cluster_name"],
            sorted(groups),
        )  # fmt: skip
    # Ray's bootstrap builds its own clients, which take the endpoint from the environment.
    before = os.environ.get("AWS_ENDPOINT_URL")
    if ours.get("endpoint"):
        os.environ["AWS_ENDPOINT_URL"] = ours["endpoint"]
    try:
        return dict(_get_node_provider_cls({"type": "aws"}).bootstrap_config(config))
    finally:
        if ours.get("endpoint"):
            if before is None:
                os.environ.pop("AWS_ENDPOINT_URL", None)
            else:
                os.environ["AWS_ENDPOINT_URL"] = before
