"""AWS: a `ray up` file with our elastic provider, or with Ray's own (`plain`)."""

from __future__ import annotations

from typing import Any

from sundog.capacity.check import Bought
from sundog.capacity.shared_parts import frame, head_type, ssh_auth, worker_types
from sundog.capacity.state import plans_to_dict
from sundog.clouds.aws_efa import efa_interfaces
from sundog.market.shapes import Shape
from sundog.spec.cluster import AwsCloud, ClusterSpec, Disk, Pool
from sundog.spec.quantity import GIB

# AWS's own image with NVIDIA's open driver (580 or later, which the CUDA 13 of torch asks for); EC2 looks
# its id up at each launch. Name an `image` to hold it still.
AWS_IMAGE = (
    "resolve:ssm:/aws/service/deeplearning/ami/x86_64/"
    "base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
)
MODULE = "sundog.capacity.provider.ElasticProvider"


def compile_aws(bought: Bought, plain: bool) -> dict[str, Any]:
    spec = bought.spec
    cloud = spec.cloud.aws
    assert cloud is not None
    assert bought.head is not None
    head_role = cloud.head_role or f"sundog-head-{spec.cluster}"
    node_role = cloud.node_role or f"sundog-node-{spec.cluster}"
    head = _node(spec, cloud, bought.head, spec.head.disk, "head", head_role)
    types = {"head": head_type(spec, head)}

    def node(shape: Shape, disk: Disk, market: str, name: str) -> dict[str, Any]:
        config = _node(spec, cloud, shape, disk, name, node_role)
        if market == "spot":
            config["InstanceMarketOptions"] = spot_options(spec.pools[name].max_price)
        return _placed(config, spec.pools[name], spec, plain)

    types |= worker_types(bought, node, plain)
    user = spec.image.user if spec.image else "ubuntu"
    auth = ssh_auth(spec, user)
    if spec.ssh.through_ssm:
        auth["ssh_proxy_use_node_id"] = True
        auth["ssh_proxy_command"] = (
            f"aws ssm start-session --region {cloud.region} --target %h "
            "--document-name AWS-StartSSHSession --parameters portNumber=%p"
        )
    return frame(
        bought, _provider(bought, cloud, plain), types, auth, cloud="aws", elastic=not plain
    )


def _provider(bought: Bought, cloud: AwsCloud, plain: bool) -> dict[str, Any]:
    spec = bought.spec
    out: dict[str, Any] = {
        "type": "aws" if plain else "external",
        "region": cloud.region,
        "cache_stopped_nodes": False,
        "use_internal_ips": spec.network.internal,
    }
    if not plain:
        out = {"type": "external", "module": MODULE} | out
        out["sundog"] = {
            "cloud": "aws",
            "endpoint": cloud.endpoint,
            "budget_usd_hour": spec.budget,
            "head_usd_hour": bought.head_usd_hour,
            "root": spec.root,
            "ssh_open_to": list(spec.ssh.open_to),
            "efa": sorted(n for n, p in spec.pools.items() if p.network == "efa"),
            **plans_to_dict(bought.pools),
        }
    return out


def spot_options(max_price: float | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"
    }  # fmt: skip
    if max_price is not None:
        options["MaxPrice"] = f"{max_price:.4f}"
    return {"MarketType": "spot", "SpotOptions": options}


def _node(
    spec: ClusterSpec, cloud: AwsCloud, shape: Shape, disk: Disk, pool: str, role: str
) -> dict[str, Any]:
    """What every instance has: encrypted disks that go with it, IMDSv2 only, cost tags."""
    tags = {"sundog:cluster": spec.cluster, "sundog:pool": pool, **cloud.tags}
    pairs = [{"Key": k, "Value": v} for k, v in tags.items()]
    image = spec.image
    ebs = {
        "VolumeSize": -(-disk.size // GIB), "VolumeType": disk.kind, "Encrypted": True,
        "DeleteOnTermination": True,
    }  # fmt: skip
    config: dict[str, Any] = {
        "InstanceType": shape.name,
        "BlockDeviceMappings": [
            {"DeviceName": image.root_device if image else "/dev/sda1", "Ebs": ebs}
        ],
        "MetadataOptions": {
            "HttpTokens": "required", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled",
            "InstanceMetadataTags": "enabled",
        },
        # A node that shuts itself down must be gone, not stopped with a disk that is still billed.
        "InstanceInitiatedShutdownBehavior": "terminate",
        "IamInstanceProfile": {"Name": role},
        "TagSpecifications": [
            {"ResourceType": "instance", "Tags": pairs},
            {"ResourceType": "volume", "Tags": pairs},
        ],
    }  # fmt: skip
    config["ImageId"] = image.id if image else AWS_IMAGE
    if spec.ssh.key_name:
        config["KeyName"] = spec.ssh.key_name
    if spec.network.subnets:
        config["SubnetIds"] = list(spec.network.subnets)
    if spec.network.security_group:
        config["SecurityGroupIds"] = [spec.network.security_group]
    return config


def _placed(config: dict[str, Any], pool: Pool, spec: ClusterSpec, plain: bool) -> dict[str, Any]:
    if pool.placement_group:
        config["Placement"] = {"GroupName": pool.placement_group}
    if plain and pool.network == "efa" and spec.network.subnets:
        # Ray refuses subnets and groups beside interfaces, and takes them from the interface.
        groups = config.pop("SecurityGroupIds", [])
        config.pop("SubnetIds", None)
        config["NetworkInterfaces"] = efa_interfaces(
            config["InstanceType"], spec.network.subnets[0], groups
        )
    return config
