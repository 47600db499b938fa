"""Committed cluster files: equal to their specs, valid for Ray, hardened; bad specs say what to do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from sundog.capacity.compile import compile_cluster, compiled_name
from sundog.capacity.state import plans_from_dict
from sundog.errors import SpecError

ROOT = Path(__file__).parents[3]
SPECS = sorted((ROOT / "cluster-configs" / "specs").glob("*.yaml"))
RAY_UP = [p for p in SPECS if p.stem != "kuberay"]


def compiled(stem: str, **change: Any) -> dict[str, Any]:
    return compile_cluster(ROOT / "cluster-configs" / "specs" / f"{stem}.yaml", **change).documents[
        -1
    ]


def test_there_is_a_spec_for_every_target() -> None:
    assert [p.stem for p in SPECS] == [
        "aws-serve",
        "aws-train",
        "azure",
        "gcp",
        "kuberay",
        "onprem",
    ]


@pytest.mark.parametrize("spec", SPECS, ids=lambda p: p.stem)
def test_the_committed_file_is_what_its_spec_compiles_to(spec: Path) -> None:
    found = compile_cluster(spec, name=f"cluster-configs/specs/{spec.name}")
    committed = compiled_name(spec).read_text()
    assert found.text == committed, f"run: sundog cluster compile cluster-configs/specs/{spec.name}"
    assert list(yaml.safe_load_all(committed)) == found.documents


@pytest.mark.parametrize("spec", RAY_UP, ids=lambda p: p.stem)
def test_ray_accepts_it(spec: Path) -> None:
    config = compile_cluster(spec).documents[0]
    validate_config(copy.deepcopy(config)) if spec.stem != "onprem" else None
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    names = prepared["available_node_types"]
    assert prepared["head_node_type"] in names
    if spec.stem != "onprem":
        assert names["head"]["resources"] == {"CPU": 0}, "the head runs no user code"
        assert config["provider"]["cache_stopped_nodes"] is False


@pytest.mark.parametrize("stem", ["gcp", "azure"])
def test_ray_accepts_the_plain_file_of_the_other_clouds(stem: str) -> None:
    config = compiled(stem, plain=True)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert config["provider"]["type"] == stem
    assert "sundog" not in config["provider"]
    assert len(prepared["available_node_types"]) > 2
    assert compiled(stem)["provider"]["type"] == "external"


@pytest.mark.parametrize("stem", ["aws-train", "aws-serve"])
def test_ray_accepts_the_plain_file_too_and_it_names_no_module_of_ours(stem: str) -> None:
    path = ROOT / "cluster-configs" / "specs" / f"{stem}.yaml"
    with pytest.raises(SpecError, match=r"0\.0\.0\.0/0"):
        compile_cluster(path, plain=True)


def test_the_plain_file_is_stock(tmp_path: Path) -> None:
    spec = tmp_path / "plain.yaml"
    text = (ROOT / "cluster-configs" / "specs" / "aws-serve.yaml").read_text()
    spec.write_text(text + "network: {security_group: sg-1}\n")
    config = compile_cluster(spec, plain=True).documents[0]
    validate_config(prepare_config(copy.deepcopy(config)))
    assert config["provider"]["type"] == "aws"
    assert "module" not in str(config["provider"])
    assert {"small-gpu-spot", "small-gpu-on-demand"} <= set(config["available_node_types"])
    spot, full = (config["available_node_types"][f"small-gpu-{m}"] for m in ("spot", "on-demand"))
    assert spot["priority"] > full["priority"]
    assert (spot["min_workers"], full["min_workers"]) == (0, 1)
    assert "InstanceMarketOptions" in spot["node_config"]


@pytest.mark.parametrize("stem", ["aws-train", "aws-serve"])
def test_every_aws_node_is_hardened_and_tagged(stem: str) -> None:
    config = compiled(stem)
    for name, node_type in config["available_node_types"].items():
        node = node_type["node_config"]
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert all(
            d["Ebs"]["Encrypted"] and d["Ebs"]["DeleteOnTermination"]
            for d in node["BlockDeviceMappings"]
        )
        for kind in ("instance", "volume"):
            [spec] = [t for t in node["TagSpecifications"] if t["ResourceType"] == kind]
            tags = {t["Key"]: t["Value"] for t in spec["Tags"]}
            assert tags["sundog:cluster"] == config["cluster_name"]
            assert "team" in tags
        assert node["InstanceInitiatedShutdownBehavior"] == "terminate"
        # A role a cluster, as the Terraform names them: two clusters in an account collide otherwise.
        role = f"sundog-{'head' if name == 'head' else 'node'}-{config['cluster_name']}"
        assert node["IamInstanceProfile"] == {"Name": role}
        assert "InstanceMarketOptions" not in node, "the market is the ladder's business"
    assert "0.0.0.0/0" not in yaml.safe_dump(config)
    assert "~/.ray/auth_token" in config["file_mounts"]
    commands = " ".join(config["head_start_ray_commands"] + config["worker_start_ray_commands"])
    assert "RAY_AUTH_MODE" in commands
    assert "sundog.capacity.preemption aws" in commands
    assert "--dashboard-host=127.0.0.1" in commands
    assert "sundog.capacity.provider" in " ".join(config["setup_commands"])


def test_a_node_type_promises_only_what_every_rung_has() -> None:
    from sundog.market import catalogue

    config = compiled("aws-serve")
    plans = plans_from_dict(config["provider"]["sundog"])
    node_type = config["available_node_types"]["small-gpu"]
    shapes = [catalogue().shape("aws", o.shape) for o in plans["small-gpu"].offers]
    assert node_type["resources"]["CPU"] == min(s.vcpus for s in shapes if s)
    assert node_type["resources"]["GPU"] == 1
    assert len({s.accelerator for s in shapes if s}) > 1
    assert "ray.io/accelerator-type" not in node_type["labels"]
    assert "ray.io/market-type" not in node_type["labels"]


def test_gangs_and_networks_reach_the_file() -> None:
    config = compiled("aws-train")
    ours = config["provider"]["sundog"]
    assert ours["efa"] == ["h100"]
    assert ours["pools"]["a10g-x4"]["one_zone"] is True
    placed = config["available_node_types"]["h100"]["node_config"]["Placement"]
    assert placed == {"GroupName": "train-h100"}


def test_a_fast_network_is_part_of_the_need(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(BAD.replace("nodes: 0..8", "nodes: 0..8\n    network: efa"))
    found = compile_cluster(path)
    assert {o.shape for o in found.bought.pools["a"].offers} == {"g5.8xlarge", "g5.16xlarge"}
    assert not [w for w in found.warnings if "NAT" in w]
    many = compile_cluster(ROOT / "cluster-configs" / "specs" / "aws-train.yaml")
    assert any("32 interfaces" in w and "NAT" in w for w in many.warnings)


def test_kuberay_has_a_group_a_rung_and_pods_without_privileges() -> None:
    cluster = compiled("kuberay")
    groups = cluster["spec"]["workerGroupSpecs"]
    assert cluster["spec"]["rayVersion"] == "2.60.0"
    assert len({g["groupName"] for g in groups}) == len(groups)
    markets = [(g["labels"]["sundog.pool"], g["labels"]["ray.io/market-type"]) for g in groups]
    assert {("a10g", "spot"), ("a10g", "on-demand"), ("a10g-x4", "spot")} <= set(markets)
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]
    [term] = head["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert {
        "key": "eks.amazonaws.com/capacityType",
        "operator": "NotIn",
        "values": ["SPOT"],
    } in term["matchExpressions"], "the head is never on spot"
    for group in groups:
        pod = group["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        [container] = pod["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        spot = "eks.amazonaws.com/capacityType" in pod["nodeSelector"]
        assert spot == (group["labels"]["ray.io/market-type"] == "spot")
        secret = next(e for e in container["env"] if e["name"] == "RAY_AUTH_TOKEN")
        assert "valueFrom" in secret, "a token is never a value in a manifest"


def test_the_header_says_where_it_is_from_how_old_and_what_never_ran() -> None:
    gcp = compile_cluster(ROOT / "cluster-configs" / "specs" / "gcp.yaml").text
    assert "validated, never run" in gcp
    assert "their age is unknown" in gcp
    assert "Prices of 2023-" in compile_cluster(ROOT / "cluster-configs/specs/aws-train.yaml").text


BAD = """\
cluster: train
cloud: {aws: {region: us-east-1, zones: all}}
budget: $60/h
pools:
  a:
    need: {gpu: A10G x1}
    nodes: 0..8
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("A10G x1}", "A10 x1}", 6, ["no GPU 'A10'", "did you mean 'A10G'"]),
        ("A10G x1}", "A10G x3}", 6, ["no shape has all of this", "nearest: g5."]),
        ("    nodes:", "    shapes: [g5.xlrge]\n    nodes:", 7, ["did you mean 'g5.xlarge'"]),
        ("us-east-1,", "us-est-1,", 2, ["no region 'us-est-1'", "us-east-1"]),
        ("us-east-1,", "us-east-7,", 2, ["zones of 'us-east-7'", "use7-az1"]),
        ("zones: all", "zones: [usw2-az1]", 2, ["not a zone of us-east-1", "such as use1-az1"]),
        ("zones: all", "zones: [us-east-1a]", 2, ["a zone's name", "use1-az1"]),
        ("  a:", "  head:", 5, ["head's own node type"]),
        ("zones: all", "tags: {cost center: x}", 2, ["no tag key"]),
        ("zones: all", "tags: {'aws:team': x}", 2, ["reserved"]),
        ("    nodes:", "    disk: {size: 1KiB}\n    nodes:", 7, ["holds no image"]),
        (
            "nodes: 0..8",
            "nodes: 0..8\n    on_demand_floor: 1\n    max_price: $0.50/h",
            9,
            ["no on-demand offer", "the cheapest is $1.006/h"],
        ),
        (
            "nodes: 0..8",
            "nodes: 0..8\n    network: efa\n    shapes: [g5.xlarge, g5.2xlarge]",
            8,
            ["none of g5.xlarge, g5.2xlarge has EFA", "larger shape"],
        ),
        ("nodes: 0..8", "nodes: 0..8\n    placement_group: g", 8, ["write one_zone: true"]),
        ("$60/h", "$1/h", 3, None),
        ("zones: all", "zones: [moon]", 2, ["'moon' is not a zone"]),
        ("$60/h", "$0.10/h", 3, ["does not cover the head", "they cost $0.17/h"]),
        ("nodes: 0..8", "nodes: 8..8\n    market: on-demand\nidle: 1min", 3, None),
        (
            "nodes: 0..8",
            "nodes: 0..8\n    market: on-demand\n    max_price: $0.01/h",
            9,
            ["no offer is at or under $0.01/h", "the cheapest is $1.006/h"],
        ),
    ],
)
def test_a_spec_that_cannot_be_bought_names_its_line_and_the_nearest_value(
    tmp_path: Path, old: str, new: str, line: int, says: list[str] | None
) -> None:
    path = tmp_path / "c.yaml"
    text = BAD.replace(old, new, 1)
    if says is None and "$1/h" in new:
        text, says = text.replace("0..8", "0..8\n    on_demand_floor: 1"), ["they cost $1.18/h"]
    elif says is None:
        text, says = text.replace("$60/h", "$5/h"), ["they cost $8.2"]
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        compile_cluster(path)
    for part in [f"c.yaml:{line}:", *(says or ())]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("cloud", "says"),
    [
        ("gcp: {project: p, region: us-centrl1, zone: us-centrl1-a}", "us-central1"),
        ("azure: {subscription: s, location: estus2}", "eastus2"),
        ("kuberay: {region: eu-wst-1}", "eu-west-1"),
        ("gcp: {project: p, region: us-central1, zone: us-central1-moon}", "such as us-central1-a"),
    ],
)
def test_a_misspelt_place_is_refused_on_every_cloud(tmp_path: Path, cloud: str, says: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"cluster: c\ncloud: {{{cloud}}}\npools:\n  a:\n    need: {{gpu: T4 x1}}\n")
    with pytest.raises(SpecError, match=rf"c\.yaml:2: .*\n.*{says}"):
        compile_cluster(path)


@pytest.mark.parametrize(
    ("cloud", "cluster", "pool", "line"),
    [
        ("gcp: {project: p, region: us-central1, zone: us-central1-a}", "c.1", "a", 1),
        ("gcp: {project: p, region: us-central1, zone: us-central1-a}", "c", "a.1", 4),
        ("kuberay: {region: us-east-1}", "c_1", "a", 1),
    ],
)
def test_a_name_that_its_cloud_would_change_is_refused(
    tmp_path: Path, cloud: str, cluster: str, pool: str, line: int
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        f"cluster: {cluster}\ncloud: {{{cloud}}}\npools:\n  {pool}:\n    need: {{gpu: T4 x1}}\n"
    )
    with pytest.raises(SpecError, match=rf"c\.yaml:{line}: .*cannot be a label"):
        compile_cluster(path)


def test_a_region_without_the_gpu_names_those_that_have_it(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text(
        "cluster: g\ncloud: {gcp: {project: p, region: africa-south1, zone: africa-south1-a}}\n"
        "pools:\n  a:\n    need: {gpu: H100 x8}\n"
    )
    with pytest.raises(SpecError, match=r"g\.yaml:5: .*not sold in africa-south1\n  sold in"):
        compile_cluster(path)
