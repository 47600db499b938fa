"""AWS against moto's EC2 in a process of its own: one contract for it and for the in-process fake,

Ray's bootstrap of the committed files, and the whole fallback under Ray's own autoscaler.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit" / "capacity"))

from scripted_cloud import ScriptedCloud  # noqa: E402

from sundog.capacity.compile import compile_cluster  # noqa: E402
from sundog.capacity.provider import ElasticProvider  # noqa: E402
from sundog.clouds.aws import AwsCloud  # noqa: E402
from sundog.clouds.base import (  # noqa: E402
    CapacityRefused,
    Cloud,
    Order,
    QuotaRefused,
    Rejected,
    Transient,
    Unsupported,
)  # fmt: skip

REGION = "us-east-1"
TAGS = {"ray-cluster-name": "c", "ray-node-type": "worker"}


class Ec2:
    def __init__(self, url: str) -> None:
        self.url = url
        self.client: Any = boto3.client("ec2", region_name=REGION, endpoint_url=url)
        self.iam: Any = boto3.client("iam", region_name=REGION, endpoint_url=url)

    def script(self, **script: Any) -> None:
        data = json.dumps(script).encode()
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/__script__", data), timeout=10)

    def calls(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.url}/__calls__", timeout=10) as answer:
            return list(json.loads(answer.read()))

    def subnets(self) -> list[str]:
        return [s["SubnetId"] for s in self.client.describe_subnets()["Subnets"]]

    def live(self) -> list[dict[str, Any]]:
        found = self.client.describe_instances(
            Filters=[{"Name": "instance-state-name", "Values": ["pending", "running", "stopped"]}]
        )
        return [i for r in found["Reservations"] for i in r["Instances"]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ec2]:
    before = dict(os.environ)
    folder = tmp_path_factory.mktemp("ec2")
    os.environ.update(
        AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing", AWS_DEFAULT_REGION=REGION,
        SUNDOG_STATE_DIR=str(folder),
    )  # fmt: skip
    port_file = folder / "port"
    script = ROOT / "tests" / "cloud" / "scripted_ec2.py"
    process = subprocess.Popen(
        [sys.executable, str(script), "--port-file", str(port_file)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not port_file.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        url = f"http://127.0.0.1:{port_file.read_text()}"
        os.environ["AWS_ENDPOINT_URL"] = url  # for Ray's own clients
        ec2 = Ec2(url)
        for name in ("head-train", "node-train", "head-serve", "node-serve"):
            ec2.iam.create_instance_profile(InstanceProfileName=f"sundog-{name}")
        yield ec2
    finally:
        process.terminate()
        process.wait()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def ec2(server: Ec2) -> Iterator[Ec2]:
    server.script(refuse=[], latency_s=0)
    yield server
    live = [i["InstanceId"] for i in server.live()]
    if live:
        server.client.terminate_instances(InstanceIds=live)


@pytest.fixture(params=["in-process", "moto"])
def cloud(request: pytest.FixtureRequest) -> Cloud:
    if request.param == "in-process":
        return ScriptedCloud(zone_names=("use1-az6", "use1-az1"))
    ec2: Ec2 = request.getfixturevalue("ec2")
    return AwsCloud(REGION, ec2.url)


def refuse(cloud: Cloud, request: pytest.FixtureRequest, code: str) -> None:
    kinds = {"InsufficientInstanceCapacity": CapacityRefused, "VcpuLimitExceeded": QuotaRefused,
             "Unsupported": Unsupported, "InvalidAMIID.NotFound": Rejected,
             "RequestLimitExceeded": Transient}  # fmt: skip
    if isinstance(cloud, ScriptedCloud):
        cloud.refuse = lambda order: kinds[code](code)
    else:
        request.getfixturevalue("ec2").script(refuse=[{"code": code}])


def order(cloud: Cloud, request: pytest.FixtureRequest, token: str, **change: Any) -> Order:
    config: dict[str, Any] = {"ImageId": "ami-12c6146b"}
    if not isinstance(cloud, ScriptedCloud):
        config["SubnetIds"] = request.getfixturevalue("ec2").subnets()
    values: dict[str, Any] = {
        "market": "spot", "zone": "use1-az1", "shape": "g5.xlarge", "count": 1, "token": token,
        "tags": TAGS, "config": config,
    }  # fmt: skip
    return Order(**(values | change))


def test_a_launch_is_tagged_listed_and_ended(cloud: Cloud, request: pytest.FixtureRequest) -> None:
    made = cloud.launch(order(cloud, request, "t1", count=2))
    assert 1 <= len(made) <= 2  # a cloud may grant fewer; moto always grants the minimum
    assert {(m.market, m.zone, m.shape) for m in made} == {("spot", "use1-az1", "g5.xlarge")}
    listed = {m.id: m for m in cloud.machines("c")}
    assert sorted(listed) == sorted(m.id for m in made)
    assert {m.market for m in listed.values()} == {"spot"}
    assert cloud.machines("another") == []
    cloud.tag([made[0].id], {"x": "1"})
    assert next(m for m in cloud.machines("c") if m.id == made[0].id).tags["x"] == "1"
    cloud.terminate([m.id for m in made])
    cloud.terminate([made[0].id])
    assert cloud.machines("c") == []


def test_the_same_token_buys_once(cloud: Cloud, request: pytest.FixtureRequest) -> None:
    first = cloud.launch(order(cloud, request, "once"))
    again = cloud.launch(order(cloud, request, "once"))
    assert [m.id for m in first] == [m.id for m in again]
    assert [m.id for m in cloud.bought("once")] == [m.id for m in first]
    assert cloud.bought("never") == []


def test_spot_prices_are_by_zone_id_and_shape(cloud: Cloud) -> None:
    if isinstance(cloud, ScriptedCloud):
        cloud.prices = {("use1-az1", "g5.xlarge"): 0.3, ("use1-az1", "p4d.24xlarge"): 9.0}
    found = cloud.spot_prices(["g5.xlarge"])
    assert found
    assert {shape for _, shape in found} == {"g5.xlarge"}
    assert all(zone.startswith("use1-az") and usd > 0 for (zone, _), usd in found.items())


@pytest.mark.parametrize(
    ("code", "kind"),
    [("InsufficientInstanceCapacity", CapacityRefused), ("VcpuLimitExceeded", QuotaRefused),
     ("Unsupported", Unsupported), ("InvalidAMIID.NotFound", Rejected),
     ("RequestLimitExceeded", Transient)],
)  # fmt: skip
def test_each_refusal_has_its_kind(
    cloud: Cloud, request: pytest.FixtureRequest, code: str, kind: type[Exception]
) -> None:
    refuse(cloud, request, code)
    with pytest.raises(kind, match=code):
        cloud.launch(order(cloud, request, code))
    assert cloud.machines("c") == []


def test_a_zone_without_a_subnet_is_unsupported_without_a_call(ec2: Ec2) -> None:
    cloud = AwsCloud(REGION, ec2.url)
    config = {"SubnetIds": ec2.subnets()[:1], "ImageId": "ami-12c6146b"}
    before = len(ec2.calls())
    with pytest.raises(Unsupported, match="no subnet"):
        cloud.launch(Order("spot", "use1-az99", "g5.xlarge", 1, "z", TAGS, config))
    assert len(ec2.calls()) == before


@pytest.fixture
def placement_groups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that bootstrap asks for; moto has no placement groups to make."""
    asked: list[str] = []
    monkeypatch.setattr(
        "sundog.clouds.aws_network.ensure_placement_groups",
        lambda region, endpoint, cluster, names: asked.extend(names),
    )
    return asked


def bootstrapped(ec2: Ec2, stem: str, **change: Any) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config

    config = compile_cluster(ROOT / "cluster-configs" / "specs" / f"{stem}.yaml").documents[0]
    config["cluster_name"] = f"{stem}-{time.monotonic_ns()}"
    config["provider"]["sundog"]["endpoint"] = ec2.url
    config["provider"]["sundog"] |= change
    return ElasticProvider.bootstrap_config(prepare_config(copy.deepcopy(config)))


@pytest.mark.parametrize("stem", ["aws-train", "aws-serve"])
def test_ray_bootstraps_the_committed_file_and_nothing_is_open(
    ec2: Ec2, stem: str, placement_groups: list[str]
) -> None:
    config = bootstrapped(ec2, stem)
    for node_type in config["available_node_types"].values():
        [group] = node_type["node_config"]["SecurityGroupIds"]
        assert node_type["node_config"]["SubnetIds"]
        assert node_type["node_config"]["KeyName"]
    [found] = ec2.client.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    assert all(not p.get("IpRanges") for p in found["IpPermissions"])
    assert found["IpPermissions"][0]["UserIdGroupPairs"][0]["GroupId"] == group
    assert placement_groups == (["train-a10g-x4", "train-h100"] if stem == "aws-train" else [])


def test_ssh_is_open_to_what_the_spec_says_and_closes_again(ec2: Ec2) -> None:
    from sundog.clouds.aws_network import ensure_security_group

    def ssh(networks: list[str]) -> list[str]:
        group = ensure_security_group(REGION, ec2.url, "ssh-test", ec2.subnets(), networks)
        [found] = ec2.client.describe_security_groups(GroupIds=[group])["SecurityGroups"]
        return sorted(
            r["CidrIp"]
            for p in found["IpPermissions"]
            for r in p.get("IpRanges", [])
            if (p["FromPort"], p["ToPort"]) == (22, 22)
        )

    assert ssh(["10.0.0.0/8", "192.0.2.0/24"]) == ["10.0.0.0/8", "192.0.2.0/24"]
    assert ssh(["10.0.0.0/8"]) == ["10.0.0.0/8"]
    assert ssh([]) == []


def test_a_committed_file_launches_its_head_and_falls_back_to_on_demand(
    ec2: Ec2, placement_groups: list[str]
) -> None:
    config = bootstrapped(ec2, "aws-train")
    name = config["cluster_name"]
    elastic = ElasticProvider(config["provider"], name)
    types = config["available_node_types"]
    head = {"ray-node-type": "head", "ray-user-node-type": "head", "ray-node-name": "h"}
    elastic.create_node(types["head"]["node_config"], head, 1)
    ec2.script(refuse=[{"market": "spot"}])
    before = len(ec2.calls())
    worker = {"ray-node-type": "worker", "ray-user-node-type": "a10g", "ray-node-name": "w"}
    made = elastic.create_node(types["a10g"]["node_config"], worker, 1)
    calls = ec2.calls()[before:]
    assert [c["market"] for c in calls] == ["spot"] * (len(calls) - 1) + ["on-demand"]
    assert len({(c["market"], c["zone"], c["shape"]) for c in calls}) == len(calls)
    [instance] = [i for i in ec2.live() if i["InstanceId"] in made]
    tags = {t["Key"]: t["Value"] for t in instance["Tags"]}
    assert tags["sundog:market"] == "on-demand"
    assert tags["team"] == "research"
    after_restart = ElasticProvider(config["provider"], name)
    assert sorted(after_restart.non_terminated_nodes({})) == sorted(
        i["InstanceId"] for i in ec2.live()
    )
    after_restart.terminate_nodes(after_restart.non_terminated_nodes({}))
    assert ec2.live() == []
    volumes = ec2.client.describe_volumes()["Volumes"]
    assert [v for v in volumes if v["State"] != "available" or not v["Encrypted"]] == []
