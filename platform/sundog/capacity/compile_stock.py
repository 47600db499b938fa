"""GCP, Azure and on-prem: `ray up` files over Ray's own providers.

With our provider around Ray's, a node type a pool, which falls back down its ladder. `plain` leaves
it out: a node type a pool and market, Ray's `priority` prefers spot, and nothing falls back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sundog.capacity import commands
from sundog.capacity.check import Bought
from sundog.capacity.compile_aws import MODULE
from sundog.capacity.reach import gcp_disk
from sundog.capacity.shared_parts import frame, head_type, ssh_auth, worker_types
from sundog.capacity.state import plans_to_dict
from sundog.market.shapes import Shape
from sundog.spec.cluster import AzureCloud, Disk, GcpCloud
from sundog.spec.quantity import GIB

# The clouds' own images with a driver that the CUDA 13 of torch can use (580 or later).
GCP_IMAGE = "projects/deeplearning-platform-release/global/images/family/common-cu129-ubuntu-2404-nvidia-580"
AZURE_IMAGE = "microsoft-dsvm:ubuntu-hpc:2404:latest"


def _elastic(bought: Bought, provider: dict[str, Any], zones: list[str]) -> dict[str, Any]:
    """The provider section with ours around Ray's."""
    out = {"type": "external", "module": MODULE} | {
        k: v for k, v in provider.items() if k != "type"
    }
    out["sundog"] = {
        "cloud": provider["type"],
        "zones": zones,
        "budget_usd_hour": bought.spec.budget,
        "head_usd_hour": bought.head_usd_hour,
        "root": bought.spec.root,
        **plans_to_dict(bought.pools),
    }
    return out


def compile_gcp(bought: Bought, plain: bool) -> dict[str, Any]:
    spec = bought.spec
    cloud, head = spec.cloud.gcp, bought.head
    assert cloud is not None
    assert head is not None

    def node(shape: Shape, disk: Disk, market: str, pool: str) -> dict[str, Any]:
        return _gcp_node(bought, cloud, shape, disk, market, pool)

    types = {"head": head_type(spec, node(head, spec.head.disk, "on-demand", "head"))}
    types |= worker_types(bought, node, plain)
    provider = {
        "type": "gcp", "region": cloud.region, "availability_zone": cloud.zone,
        "project_id": cloud.project, "cache_stopped_nodes": False,
        "use_internal_ips": spec.network.internal,
    }  # fmt: skip
    if not plain:
        provider = _elastic(bought, provider, [cloud.zone, *cloud.more_zones])
    user = spec.image.user if spec.image else "ubuntu"
    extra = [f"{commands.exports(spec)} pip install 'google-api-python-client>=2'"]
    return frame(
        bought, provider, types, ssh_auth(spec, user), cloud="gcp", elastic=not plain,
        head_extra=extra,
    )  # fmt: skip


def _gcp_node(
    bought: Bought, cloud: GcpCloud, shape: Shape, disk: Disk, market: str, pool: str
) -> dict[str, Any]:
    spec = bought.spec
    # GCP always encrypts disks at rest; there is nothing to switch on.
    kind = disk.kind if gcp_disk(disk.kind) else "pd-balanced"
    out: dict[str, Any] = {
        "machineType": shape.name,
        "disks": [{
            "boot": True, "autoDelete": True, "type": "PERSISTENT",
            "initializeParams": {
                "diskSizeGb": -(-disk.size // GIB),
                "diskType": f"zones/{cloud.zone}/diskTypes/{kind}",
                "sourceImage": spec.image.id if spec.image else GCP_IMAGE,
            },
        }],
        "labels": {"sundog-cluster": _gcp_label(spec.cluster), "sundog-pool": _gcp_label(pool)}
        | {_gcp_label(k): _gcp_label(v) for k, v in cloud.tags.items()},
        "metadata": {"items": [{"key": "block-project-ssh-keys", "value": "false"},
                               {"key": "serial-port-enable", "value": "false"}]},
        "shieldedInstanceConfig": {
            "enableSecureBoot": False, "enableVtpm": True, "enableIntegrityMonitoring": True
        },
    }  # fmt: skip
    if market == "spot":
        out["scheduling"] = [
            {"provisioningModel": "SPOT", "preemptible": True, "automaticRestart": False,
             "onHostMaintenance": "TERMINATE", "instanceTerminationAction": "DELETE"}
        ]  # fmt: skip
    elif shape.accelerators:
        out["scheduling"] = [{"onHostMaintenance": "TERMINATE", "automaticRestart": False}]
    if cloud.service_account:
        out["serviceAccounts"] = [
            {"email": cloud.service_account,
             "scopes": ["https://www.googleapis.com/auth/cloud-platform"]}
        ]  # fmt: skip
    return out


def _gcp_label(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in text.lower())[:63]


def compile_azure(bought: Bought, plain: bool) -> dict[str, Any]:
    spec = bought.spec
    cloud, head = spec.cloud.azure, bought.head
    assert cloud is not None
    assert head is not None

    def node(shape: Shape, disk: Disk, market: str, pool: str) -> dict[str, Any]:
        return _azure_node(bought, cloud, shape, disk, market, pool)

    types = {"head": head_type(spec, node(head, spec.head.disk, "on-demand", "head"))}
    types |= worker_types(bought, node, plain)
    provider = {
        "type": "azure", "location": cloud.location, "resource_group": cloud.resource_group,
        "subscription_id": cloud.subscription, "availability_zone": cloud.zone,
        "cache_stopped_nodes": False, "use_internal_ips": spec.network.internal,
        "tags": {"sundog-cluster": spec.cluster, **cloud.tags},
    }  # fmt: skip
    if not plain:
        provider = _elastic(bought, provider, [""])
    user = spec.image.user if spec.image else "ubuntu"
    extra = [
        f"{commands.exports(spec)} pip install azure-identity azure-mgmt-compute "
        "azure-mgmt-network azure-mgmt-resource azure-common msrestazure"
    ]
    auth = ssh_auth(spec, user)
    if spec.ssh.private_key:
        auth["ssh_public_key"] = f"{spec.ssh.private_key}.pub"  # Ray refuses one without the other
    return frame(
        bought, provider, types, auth, cloud="azure", elastic=not plain,
        head_extra=extra,
    )  # fmt: skip


def _azure_node(
    bought: Bought, cloud: AzureCloud, shape: Shape, disk: Disk, market: str, pool: str
) -> dict[str, Any]:
    image = bought.spec.image.id if bought.spec.image else AZURE_IMAGE
    publisher, offer, sku, version = ([*image.split(":"), "", "", "latest"])[:4]
    # Managed disks are encrypted at rest by the platform; Ray's template has no further switch.
    arm: dict[str, Any] = {
        "vmSize": shape.name, "imagePublisher": publisher, "imageOffer": offer, "imageSku": sku,
        "imageVersion": version or "latest", "osDiskSize": -(-disk.size // GIB),
    }  # fmt: skip
    if pool == "head":
        arm["availability_zone"] = "none"
    if market == "spot":
        arm["priority"] = "Spot"
        arm["billingProfile"] = {"maxPrice": bought.spec.pools[pool].max_price or -1}
    # The provider's tags reach only the resource group; these go on each machine.
    tags = {"sundog-cluster": bought.spec.cluster, **cloud.tags}
    return {"azure_arm_parameters": arm, "tags": tags}


def compile_onprem(bought: Bought, plain: bool) -> dict[str, Any]:
    """Machines that exist: no market, no price, and Ray detects what each has."""
    spec = bought.spec
    hosts = [h for p in spec.pools.values() for h in p.hosts]
    document = frame(
        bought, {"type": "local", "head_ip": spec.head.host, "worker_ips": hosts}, {},
        ssh_auth(spec, spec.image.user if spec.image else "ubuntu"), cloud="onprem",
    )  # fmt: skip
    # Ray's local provider refuses node types: it has exactly one, its own.
    for key in ("available_node_types", "head_node_type"):
        document.pop(key)
    document["max_workers"] = len(hosts)
    document["min_workers"] = sum(p.nodes.low for p in spec.pools.values())
    return document


COMPILERS: dict[str, Callable[[Bought, bool], dict[str, Any]]] = {
    "gcp": compile_gcp, "azure": compile_azure, "onprem": compile_onprem
}  # fmt: skip
