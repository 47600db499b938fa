"""Each field that a target does not take is said, or refused where its absence would be unsafe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sundog.capacity.check import check, read_spec
from sundog.capacity.compile import Compiled, compile_cluster
from sundog.capacity.plan import plan_cluster, render
from sundog.capacity.reach import TABLE, Unreached
from sundog.errors import SpecError

CLOUDS: dict[str, dict[str, Any]] = {
    "aws": {"region": "us-east-1"},
    "gcp": {"project": "p", "region": "us-central1", "zone": "us-central1-a"},
    "azure": {"subscription": "s", "location": "eastus"},
    "onprem": {},
    "kuberay": {"region": "us-east-1"},
}
GPU = {"gcp": "L4 x1"}
# A value that is not the default, for each field of the table.
VALUES: dict[str, Any] = {
    "ssh.open_to": ["10.0.0.0/8"], "ssh.through_ssm": True, "ssh.key_name": "k",
    "ssh.private_key": "~/.ssh/k", "network.subnets": ["subnet-1"],
    "network.security_group": "sg-1", "network.internal": True, "budget": "$90/h",
    "pools.*.max_price": "$80/h", "pools.*.on_demand_floor": 1, "pools.*.hand_back": 0.5,
    "pools.*.rungs": 3, "pools.*.market": "on-demand", "pools.*.placement_group": "g",
    "pools.*.network": "efa", "pools.*.one_zone": True, "cloud.aws.zones": ["use1-az1"],
    "cloud.gcp.more_zones": ["us-central1-b"], "pools.*.disk": {"size": "300GiB"},
    "head.disk": {"size": "300GiB"}, "pools.*.disk.kind": "x", "head.disk.kind": "x",
    "image.root_device": "/dev/xvda", "setup": ["echo hello"], "install": {"wheel": "none"},
    "pools.*.idle": "9min", "pools.*.need.gpu": "T4 x1", "pools.*.need.cpus": "8..",
    "pools.*.need.memory": "8GiB..",
}  # fmt: skip


def write(path: Path, cloud: str, field: str = "", value: Any = None, **more: Any) -> Path:
    pool: dict[str, Any] = {
        "need": {} if cloud == "onprem" else {"gpu": GPU.get(cloud, "T4 x1")},
        "nodes": "0..2",
    }
    data: dict[str, Any] = {
        "cluster": "c",
        "cloud": {cloud: dict(CLOUDS[cloud])},
        "pools": {"a": pool},
    }
    if cloud == "onprem":
        pool["hosts"], data["head"] = ["10.0.0.2", "10.0.0.3"], {"host": "10.0.0.1"}
    data |= more
    if field:
        if field.startswith("image."):
            data["image"] = {"id": "a:b:c:d"}
        at: Any = data
        *parents, last = field.replace("*", "a").split(".")
        for part in parents:
            at = at.setdefault(part, {})
        at[last] = value
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def compiled(path: Path, target: str) -> Compiled:
    return compile_cluster(path, plain=target.endswith("--plain"))


# A budget on Azure is refused before: the snapshot has no prices there.
ROWS = [
    (row, target)
    for row in TABLE
    for target in row.targets
    if (row.field, target) != ("budget", "azure --plain")
]


@pytest.mark.parametrize(("row", "to"), ROWS, ids=[f"{r.field}-{t}" for r, t in ROWS])
def test_a_field_that_does_not_reach_its_target_is_said_or_refused(
    tmp_path: Path, row: Unreached, to: str
) -> None:
    more = {"network": {"security_group": "sg-1"}} if to == "aws --plain" else {}
    path = write(tmp_path / "c.yaml", to.split()[0], row.field, VALUES[row.field], **more)
    if row.field.endswith("placement_group"):
        data = yaml.safe_load(path.read_text())
        data["pools"]["a"]["one_zone"] = True
        path.write_text(yaml.safe_dump(data, sort_keys=False))
    if row.fix:
        with pytest.raises(SpecError, match=r"c\.yaml:\d+: .* does not reach") as caught:
            compiled(path, to)
        assert row.why in str(caught.value)
        return
    found = compiled(path, to)
    said = f"{row.field.replace('*', 'a')} does not reach {to}: {row.why}"
    assert said in found.warnings
    assert f"# Note: {said}" in found.text
    plan = plan_cluster(path, plain=to.endswith("--plain"))
    assert said in render(plan)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_what_nobody_wrote_is_not_warned_about(tmp_path: Path, cloud: str) -> None:
    found = compiled(write(tmp_path / "c.yaml", cloud), cloud)
    assert not [w for w in found.warnings if "does not reach" in w]


@pytest.mark.parametrize("field", [f for f in VALUES if f.startswith(("ssh", "network", "pools"))])
def test_our_provider_on_aws_takes_them_all(tmp_path: Path, field: str) -> None:
    value = {"pools.*.disk.kind": "gp3"}.get(field, VALUES[field])
    path = write(tmp_path / "c.yaml", "aws", field, value, root="s3://bucket")
    data = yaml.safe_load(path.read_text())
    data["pools"]["a"]["one_zone"] = True  # a placement group asks for it
    path.write_text(yaml.safe_dump(data))
    assert compiled(path, "aws").warnings == []


def test_a_group_that_exists_has_its_own_rules(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.yaml",
        "aws",
        "ssh.open_to",
        ["10.0.0.0/8"],
        network={"security_group": "sg-1"},
    )
    with pytest.raises(SpecError, match=r"c\.yaml:\d+: ssh\.open_to"):
        compiled(path, "aws")


def test_a_cluster_without_a_root_is_told_what_it_goes_without(tmp_path: Path) -> None:
    found = compiled(write(tmp_path / "c.yaml", "aws"), "aws")
    assert any(w.startswith("no root") for w in found.warnings)
    rooted = compiled(write(tmp_path / "c.yaml", "aws", root="s3://bucket"), "aws")
    assert not [w for w in rooted.warnings if "root" in w]
    nobodys = compiled(write(tmp_path / "c.yaml", "aws", root="s3://YOUR-BUCKET"), "aws")
    assert any("is no storage root yet" in w for w in nobodys.warnings)


def test_a_budget_that_nothing_enforces_is_not_said_to_stop_launches(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "kuberay", "budget", "$0.45/h")
    [line] = [r for r in plan_cluster(path).refused if "over the budget" in r]
    assert "nothing stops it here" in line
    same = write(tmp_path / "d.yaml", "aws", "budget", "$0.45/h")
    assert "launches stop there" in " ".join(plan_cluster(same).refused)


def test_worker_groups_of_kuberay_may_come_to_more_than_the_pool_says(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "kuberay")
    found = compiled(path, "kuberay")
    groups = found.documents[-1]["spec"]["workerGroupSpecs"]
    most = sum(g["maxReplicas"] for g in groups)
    assert most > 2
    assert any(f"together they may come to {most} nodes" in w for w in found.warnings)


def test_an_idle_time_of_a_pool_reaches_its_worker_groups(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "kuberay", "pools.*.idle", "9min")
    groups = compiled(path, "kuberay").documents[-1]["spec"]["workerGroupSpecs"]
    assert {g["idleTimeoutSeconds"] for g in groups} == {540}


def test_a_key_of_ones_own_comes_with_its_public_half_on_azure(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "azure", "ssh.private_key", "~/.ssh/k")
    auth = compiled(path, "azure").documents[0]["auth"]
    assert (auth["ssh_private_key"], auth["ssh_public_key"]) == ("~/.ssh/k", "~/.ssh/k.pub")


def test_cost_tags_are_on_each_machine_of_azure(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "azure", "cloud.azure.tags", {"team": "t"})
    for kind in compiled(path, "azure").documents[0]["available_node_types"].values():
        assert kind["node_config"]["tags"] == {"sundog-cluster": "c", "team": "t"}


def test_own_machines_carry_their_pool_so_that_a_probe_finds_them(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "onprem", "pools.*.labels", {"rack": "7"})
    config = compiled(path, "onprem").documents[0]
    [start] = [c for c in config["worker_start_ray_commands"] if "ray start" in c]
    assert "--labels=sundog.pool=a,rack=7" in start
    data = yaml.safe_load(path.read_text())
    data["pools"]["b"] = data["pools"]["a"]
    path.write_text(yaml.safe_dump(data))
    assert any("several pools" in w for w in compiled(path, "onprem").warnings)


def test_the_price_limit_of_a_plain_file_is_in_its_spot_requests(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.yaml",
        "aws",
        "pools.*.max_price",
        "$0.90/h",
        network={"security_group": "sg-1"},
    )
    types = compiled(path, "aws --plain").documents[0]["available_node_types"]
    options = types["a-spot"]["node_config"]["InstanceMarketOptions"]["SpotOptions"]
    assert options["MaxPrice"] == "0.9000"


def test_a_disk_is_never_smaller_than_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "aws", "pools.*.disk", {"size": "100.5GiB"})
    assert check(read_spec(path)).spec.pools["a"].disk.size > 100 * 2**30
    node = compiled(path, "aws").documents[0]["available_node_types"]["a"]["node_config"]
    assert node["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] == 101
