"""The file that a cluster was started from: found from its spec, or named itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sundog.capacity.compile import compile_cluster, compiled_name
from sundog.errors import ClusterError


def documents(path: str | Path) -> list[dict[str, Any]]:
    """What is in a YAML file; [] where it cannot be read as such."""
    try:
        found = list(yaml.safe_load_all(Path(path).read_text("utf-8")))
    except (OSError, ValueError, yaml.YAMLError):
        return []
    return [d for d in found if isinstance(d, dict)]


def is_manifest(path: str | Path) -> bool:
    """Whether `kubectl apply` takes it, and `ray up` does not."""
    return any(d.get("kind") == "RayCluster" for d in documents(path))


def is_compiled(path: str | Path) -> bool:
    return any("cluster_name" in d and "provider" in d for d in documents(path))


def read_compiled(path: str | Path) -> dict[str, Any]:
    """The compiled file. ClusterError where there is no ladder in it."""
    if is_manifest(path):
        raise ClusterError(
            f"{path} is for Kubernetes, which knows its nodes itself",
            "ask it: kubectl get raycluster,pods -A -l sundog/cluster; kubectl describe for the reason",
        )
    if not is_compiled(path):
        raise ClusterError(
            f"{path} is no compiled cluster file", "write it: sundog cluster compile SPEC"
        )
    config = next(d for d in documents(path) if "cluster_name" in d)
    if config["provider"].get("sundog") is None:
        raise ClusterError(
            f"{path} has no elastic provider", "ask Ray: ray status, or the cloud's console"
        )
    return config


def config_of(file: str | Path) -> dict[str, Any]:
    """The cluster of a spec or of its compiled file, whichever of the two is here.

    A spec whose compiled file lies on another machine is compiled anew, which changes no address.
    """
    if is_compiled(file) or is_manifest(file):
        return read_compiled(file)
    written = compiled_name(file)
    if written.is_file():
        return read_compiled(written)
    [*_, config] = compile_cluster(file).documents
    if config.get("provider", {}).get("sundog") is None:
        raise ClusterError(f"{file} has no elastic provider", "join it with its cloud's own tools")
    return config
