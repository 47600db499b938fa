"""The cloud that a cluster file names, ready to be asked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from sundog.clouds.base import Cloud
from sundog.errors import ClusterError

SDK_FIX = {
    "gcp": "pip install 'google-api-python-client>=2'",
    "azure": "pip install azure-identity azure-mgmt-compute azure-mgmt-network azure-mgmt-resource",
}


@contextlib.contextmanager
def aws_profile() -> Iterator[None]:
    """A profile that is not there, said as such: boto3 finds out only where it makes a client."""
    import botocore.exceptions

    try:
        yield
    except botocore.exceptions.ProfileNotFound as error:
        raise ClusterError(
            str(error), "AWS_PROFILE names it; `aws configure list-profiles` shows those there are"
        ) from None


def make_cloud(provider_config: Mapping[str, Any], cluster: str = "") -> Cloud:
    """`cluster` is needed where Ray's own provider does the calls (GCP, Azure)."""
    ours = provider_config["sundog"]
    name = ours.get("cloud")
    if name == "aws":
        from sundog.clouds.aws import AwsCloud

        with aws_profile():
            return AwsCloud(provider_config["region"], ours.get("endpoint"))
    if name not in SDK_FIX:
        raise ClusterError(f"no elastic provider for {name!r}", "compile with --plain instead")
    from sundog.clouds.azure import Azure
    from sundog.clouds.gcp import Gcp
    from sundog.clouds.ray_provider import RayCloud

    zones = ours.get("zones") or [""]
    providers = {z: _rays(name, provider_config, cluster, z) for z in zones}
    return RayCloud(Gcp() if name == "gcp" else Azure(), providers)


def _rays(name: str, config: Mapping[str, Any], cluster: str, zone: str) -> Any:
    """Ray's own provider, told of one zone."""
    from ray.autoscaler._private.providers import _get_node_provider_cls

    own = {k: v for k, v in config.items() if k not in ("sundog", "module")} | {"type": name}
    if zone:
        own["availability_zone"] = zone
    try:
        return _get_node_provider_cls(own)(own, cluster)
    except ImportError as error:
        raise ClusterError(f"the SDK of {name} is not installed: {error}", SDK_FIX[name]) from None
