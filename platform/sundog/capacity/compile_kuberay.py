"""KubeRay: a RayCluster with one worker group a rung. Kubernetes places pods; nothing falls back."""

from __future__ import annotations

from typing import Any

from sundog.capacity.check import Bought
from sundog.capacity.shared_parts import labels, ray_accelerator
from sundog.market.offers import Offer
from sundog.market.shapes import Shape
from sundog.spec.cluster import KuberayCloud
from sundog.spec.quantity import GIB

RAY_VERSION = "2.60.0"
IMAGE = "sundog:0.1.0"
# Kubernetes and its agents need some of each machine; a pod that asks for all of it never fits.
POD_SHARE = 0.9
SPOT_LABEL = {
    "aws": {"eks.amazonaws.com/capacityType": "SPOT"},
    "gcp": {"cloud.google.com/gke-spot": "true"},
    "azure": {"kubernetes.azure.com/scalesetpriority": "spot"},
}
# The head is never on spot, whoever made the node: EKS's own groups or Karpenter.
ALSO_SPOT = {"aws": {"karpenter.sh/capacity-type": "spot"}}
SPOT_TAINT = {
    "aws": None,
    "gcp": "cloud.google.com/gke-spot=true:NoSchedule",
    "azure": "kubernetes.azure.com/scalesetpriority=spot:NoSchedule",
}


def compile_kuberay(bought: Bought) -> list[dict[str, Any]]:
    """A Namespace, the token's reference and the RayCluster. The token's Secret is made by hand."""
    spec = bought.spec
    cloud = spec.cloud.kuberay
    assert cloud is not None
    image = spec.image.id if spec.image else IMAGE
    groups = []
    for name, plan in bought.pools.items():
        for number, offer in enumerate(_rungs(plan.offers), 1):
            shape = next(s for s in bought.shapes[name] if s.name == offer.shape)
            groups.append(_group(bought, cloud, name, number, offer, shape, image))
    cluster = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {
            "name": spec.cluster, "namespace": cloud.namespace,
            "labels": {"sundog/cluster": spec.cluster},
        },
        "spec": {
            "rayVersion": RAY_VERSION,
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {
                "version": "v2", "idleTimeoutSeconds": int(spec.idle), "upscalingMode": "Default"
            },
            "headGroupSpec": _head(bought, cloud, image),
            "workerGroupSpecs": groups,
        },
    }  # fmt: skip
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": cloud.namespace}}
    return [namespace, cluster]


def _rungs(offers: tuple[Offer, ...]) -> list[Offer]:
    """One offer a market and shape: Kubernetes chooses the zone."""
    seen: dict[tuple[str, str], Offer] = {}
    for offer in offers:
        seen.setdefault((offer.market, offer.shape), offer)
    return list(seen.values())


def _head(bought: Bought, cloud: KuberayCloud, image: str) -> dict[str, Any]:
    spec = bought.spec
    # The autoscaler gets a role of its own from KubeRay; user pods get no API token at all.
    return {
        "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
        "template": {
            "metadata": {"labels": {"sundog/cluster": spec.cluster, "sundog/pool": "head"}},
            "spec": {
                "affinity": {"nodeAffinity": _not_spot(cloud)},
                "containers": [
                    _container("ray-head", image, str(spec.head.cpus), spec.head.memory, {}, bought)
                ],
            },
        },
    }  # fmt: skip


def _not_spot(cloud: KuberayCloud) -> dict[str, Any]:
    labels = SPOT_LABEL[cloud.nodes_of] | ALSO_SPOT.get(cloud.nodes_of, {})
    rules = [{"key": k, "operator": "NotIn", "values": [v]} for k, v in labels.items()]
    return {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": rules}]
        }
    }


def _group(
    bought: Bought, cloud: KuberayCloud, pool_name: str, number: int, offer: Offer, shape: Shape,
    image: str,
) -> dict[str, Any]:  # fmt: skip
    pool = bought.spec.pools[pool_name]
    place: dict[str, str] = {"node.kubernetes.io/instance-type": shape.name}
    tolerations = []
    if offer.market == "spot":
        place |= SPOT_LABEL[cloud.nodes_of]
        taint = cloud.spot_taint or SPOT_TAINT[cloud.nodes_of]
        if taint:
            key, _, rest = taint.partition("=")
            value, _, effect = rest.partition(":")
            tolerations.append(
                {"key": key, "operator": "Equal", "value": value, "effect": effect or "NoSchedule"}
            )
    extra: dict[str, Any] = {}
    if shape.accelerators:
        extra["nvidia.com/gpu"] = shape.accelerators
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    memory = int(shape.memory_gib * GIB * POD_SHARE)
    found = labels(pool_name, pool, (shape,)) | {"ray.io/market-type": offer.market}
    start = {"num-gpus": str(shape.accelerators)} if shape.accelerators else {}
    typed = f'"accelerator_type:{ray_accelerator(shape)}": 1'
    if shape.accelerators:
        start["resources"] = "'{" + typed + "}'"
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "nodeSelector": place,
        # Longer than a spot notice is no use, shorter would cut the drain short.
        "terminationGracePeriodSeconds": 120,
        "containers": [
            _container(
                "ray-worker", image, str(max(1, int(shape.vcpus * POD_SHARE))), memory, extra,
                bought,
            )
        ],
    }  # fmt: skip
    if tolerations:
        pod["tolerations"] = tolerations
    if pool.one_zone:
        pod["affinity"] = _same_zone(bought.spec.cluster, pool_name)
    first = number == 1
    idle = {} if pool.idle is None else {"idleTimeoutSeconds": int(pool.idle)}
    return {
        "groupName": f"{pool_name}-{offer.market}-{shape.name}".replace(".", "-").lower(),
        "replicas": pool.nodes.low if first else 0,
        "minReplicas": pool.nodes.low if first else 0,
        "maxReplicas": pool.nodes.high,
        **idle,
        "rayStartParams": start,
        "labels": found,
        "template": {
            "metadata": {"labels": {"sundog/cluster": bought.spec.cluster,
                                    "sundog/pool": pool_name}},
            "spec": pod,
        },
    }  # fmt: skip


def _same_zone(cluster: str, pool: str) -> dict[str, Any]:
    term = {
        "labelSelector": {"matchLabels": {"sundog/cluster": cluster, "sundog/pool": pool}},
        "topologyKey": "topology.kubernetes.io/zone",
    }
    return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def _container(
    name: str, image: str, cpus: str, memory: int, extra: dict[str, Any], bought: Bought
) -> dict[str, Any]:
    wanted = {"cpu": cpus, "memory": f"{memory // 2**20}Mi", **extra}
    env = [
        {"name": "RAY_AUTH_MODE", "value": "token"},
        {"name": "RAY_AUTH_TOKEN",
         "valueFrom": {"secretKeyRef": {"name": f"{bought.spec.cluster}-token", "key": "token"}}},
    ]  # fmt: skip
    values = ({"SUNDOG_ROOT": bought.spec.root} if bought.spec.root else {}) | bought.spec.env
    env += [{"name": k, "value": v} for k, v in values.items()]
    return {
        "name": name,
        "image": image,
        "env": env,
        "resources": {"requests": wanted, "limits": wanted},
        "securityContext": {
            "allowPrivilegeEscalation": False, "runAsNonRoot": True, "runAsUser": 1000,
            "capabilities": {"drop": ["ALL"]},
        },
    }  # fmt: skip
