"""Plain `ray up` of the committed AWS training config, on a cloud that is this machine.

Endpoint, image, network and key are overridden by fields of the spec; everything else is as it is
committed.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from namespaces import Cloud, missing

from sundog.capacity.compile import compile_cluster

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
pytestmark = [
    pytest.mark.cloud,
    pytest.mark.skipif(bool(missing()), reason=missing() or "ready"),
    pytest.mark.timeout(1500),
]


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    for key, value in AWS.items():
        monkeypatch.setenv(key, value)
    made = Cloud()
    try:
        yield made.open()
    finally:
        made.close()


AWS = {
    "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}  # fmt: skip


class RayUp:
    """The commands a person types, and what they said."""

    def __init__(self, cloud: Cloud, folder: Path) -> None:
        self.cloud, self.file = cloud, folder / "train.yaml"
        spec = yaml.safe_load((ROOT / "cluster-configs/specs/aws-train.yaml").read_text())
        spec["pools"] = {"a10g": spec["pools"]["a10g"]}
        spec["cloud"]["aws"] |= {
            "endpoint": cloud.url, "zones": sorted(cloud.zone_ids.values()),
            "metadata": "http://169.254.169.254",
        }  # fmt: skip
        spec["image"] = {"id": cloud.image, "user": "root"}
        spec["ssh"] = {"key_name": "cloud", "private_key": str(cloud.folder / "key")}
        spec["network"] = {"internal": True, "subnets": cloud.subnets}
        spec["install"] = {"wheel": "none"}
        spec.pop("root", None)  # so the ledger is the one that the head keeps
        spec["idle"] = "15s"
        spec["env"] = {"PATH": f"{BIN}:$PATH", "AUTOSCALER_UPDATE_INTERVAL_S": "1", **AWS}
        path = folder / "specs" / "train.yaml"
        path.parent.mkdir()
        path.write_text(yaml.safe_dump(spec))
        self.file.write_text(compile_cluster(path).text)
        home = folder / "home"
        (home / ".ray").mkdir(parents=True)
        (home / ".ray" / "auth_token").write_text("1" * 64)
        self.env = {
            **os.environ, "HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token", "AWS_ENDPOINT_URL": cloud.url, "RAY_USAGE_STATS_ENABLED": "0",
            "SUNDOG_STATE_DIR": str(folder / "state"),
        }  # fmt: skip
        self.env.pop("RAY_AUTH_TOKEN_PATH", None)

    def ray(self, *command: str, limit_s: float = 400) -> str:
        done = subprocess.run(
            [str(BIN / "ray"), *command], env=self.env, cwd=ROOT, capture_output=True, text=True,
            timeout=limit_s,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
        return done.stdout

    def sundog(self, *command: str, limit_s: float = 300) -> Any:
        """A `sundog cluster` command on the spec, as a program reads it."""
        first, *rest = command
        words = ("cluster", first, "specs/train.yaml", *rest)
        return self._said(words, limit_s)

    def costs(self) -> dict[str, float]:
        """Node-hours by node type, from the ledger that the head keeps."""
        words = ("cost", "--by", "node-type", "--cluster", "specs/train.yaml")
        return {line["key"]: line["node_hours"] for line in self._said(words, 300)}

    def _said(self, words: tuple[str, ...], limit_s: float) -> Any:
        done = subprocess.run(
            [str(BIN / "sundog"), *words, "--json"],
            env=self.env, cwd=self.file.parent, capture_output=True, text=True, timeout=limit_s,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return json.loads(done.stdout)

    def up(self) -> str:
        return self.ray("up", "-y", "--no-config-cache", str(self.file))

    def down(self) -> str:
        return self.ray("down", "-y", str(self.file))

    def on_head(self, command: str, limit_s: float = 400) -> str:
        exports = f'export PATH="{BIN}:$PATH" RAY_AUTH_MODE=token;'
        return self.ray("exec", str(self.file), f"{exports} {command}", limit_s=limit_s)

    def job(self, code: str, limit_s: float = 300) -> str:
        quoted = code.replace('"', '\\"')
        return self.on_head(
            f'ray job submit --address http://127.0.0.1:8265 -- python -c "{quoted}"', limit_s
        )


@pytest.fixture
def cluster(cloud: Cloud, tmp_path: Path) -> Iterator[RayUp]:
    made = RayUp(cloud, tmp_path)
    made.up()
    return made


def until(what: Callable[[], Any], limit_s: float = 180.0) -> None:
    deadline = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.5)


GPU_JOB = (
    "import ray; ray.init(); "
    "print('GPU', ray.get(ray.remote(num_gpus=1)(lambda: ray.get_runtime_context().node_labels "
    "if hasattr(ray.get_runtime_context(), 'node_labels') else 'ran').remote()))"
)


def test_a_gpu_job_brings_a_spot_node_or_on_demand_when_spot_is_refused_and_down_leaves_nothing(
    cloud: Cloud, cluster: RayUp
) -> None:
    """Scenarios 1, 2, 4 and 7 on one cluster, since bringing one up is most of the time."""
    [head] = cloud.instances()
    assert head["Tags"]
    # 1: a spot node comes, the job finishes, the idle node goes.
    assert "GPU" in cluster.job(GPU_JOB)
    launched = [c for c in cloud.calls() if c["shape"].startswith("g5")]
    assert [c["market"] for c in launched] == ["spot"]
    until(lambda: len(cloud.instances()) == 1)
    # 2: spot is refused, an on-demand node runs within the same request.
    cloud.script({"market": "spot"})
    before = len(cloud.calls())
    assert "GPU" in cluster.job(GPU_JOB)
    later = cloud.calls()[before:]
    assert later[-1]["market"] == "on-demand"
    assert [c["market"] for c in later].count("on-demand") == 1
    rungs = [(c["market"], c["zone"], c["shape"]) for c in later]
    assert len(set(rungs)) == len(rungs), "a rung was asked twice"
    assert cloud.instances(market="on-demand")
    # 4: spot recovers. The stand-in goes when it is idle, and the next node is spot again.
    cloud.script()
    until(lambda: len(cloud.instances()) == 1)
    time.sleep(max(0.0, 31.0 - (time.time() - later[0]["at_s"])))  # the cool-down of the refusals
    before = len(cloud.calls())
    assert "GPU" in cluster.job(GPU_JOB)
    assert [c["market"] for c in cloud.calls()[before:]] == ["spot"]
    # 7: nothing is left.
    cluster.down()
    assert cloud.instances() == []
    stopped = cloud.ec2.describe_instances(
        Filters=[{"Name": "instance-state-name", "Values": ["stopped", "stopping"]}]
    )
    assert stopped["Reservations"] == []


def two_tasks(gate: Path) -> str:
    """One long GPU task; a second is asked for when the gate is there, on whatever node there is."""
    return (
        "import ray, time, os; ray.init(); "
        "work = ray.remote(num_gpus=1)(lambda s: time.sleep(s) or 'kept'); one = work.remote(40); "
        f"[time.sleep(0.1) for _ in iter(lambda: os.path.exists('{gate}'), True)]; "
        "two = work.remote(0); print('TWO', ray.get(two)); print('ONE', ray.get(one))"
    )


def test_an_empty_zone_and_a_notice_on_a_busy_node(cloud: Cloud, cluster: RayUp) -> None:
    """Scenarios 3 and 5."""
    # 3: the first zone has nothing, in neither market.
    config = yaml.safe_load(cluster.file.read_text())
    first = config["provider"]["sundog"]["pools"]["a10g"]["offers"][0]["zone"]
    cloud.script({"zone": first})
    gate = cloud.folder / "gate"
    submitted = cluster.on_head(
        "ray job submit --no-wait --submission-id two --address http://127.0.0.1:8265 -- "
        f'python -c "{two_tasks(gate)}"'
    )
    assert "two" in submitted
    until(lambda: cloud.instances(pool="a10g"))
    [worker] = cloud.instances(pool="a10g")
    tags = {t["Key"]: t["Value"] for t in worker["Tags"]}
    assert (tags["sundog:market"], tags["sundog:zone"] != first) == ("spot", True)
    # 5: a notice while the first task runs; the task is kept, the second gets a new node.
    log = cloud.folder / worker["InstanceId"][-8:] / "root" / ".sundog" / "preemption.log"
    until(lambda: log.exists(), 300)
    time.sleep(8)  # the task is on its way to the node that just joined
    before, noticed_s = len(cloud.calls()), time.time()
    ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(noticed_s + 120))
    cloud.notice(worker["InstanceId"], {"action": "terminate", "time": ends})
    until(lambda: "drained" in log.read_text(), 60)
    gate.touch()  # work is wanted that the draining node may not take
    until(lambda: len(cloud.calls()) > before, 60)
    drained = next(json.loads(x) for x in log.read_text().splitlines() if '"drained"' in x)
    replaced_s = cloud.calls()[before]["at_s"]
    print(
        f"notice to drained: {drained['at_s'] - noticed_s:.1f} s, "
        f"to replacement launched: {replaced_s - noticed_s:.1f} s"
    )
    follow = "ray job logs --follow --address http://127.0.0.1:8265 two"
    said = cluster.on_head(follow)
    assert "ONE kept" in said
    assert "TWO kept" in said
    cluster.down()
    assert cloud.instances() == []


def test_a_head_whose_ray_died_comes_up_again_without_orphan_or_duplicate(
    cloud: Cloud, cluster: RayUp
) -> None:
    """Scenario 6, and what a person asks of a cluster that is up."""
    [head] = cloud.instances(pool="head")
    # Two nodes whose GPUs are held while they are looked at, so that they are not idle and gone.
    long_job = (
        "import ray, time; from ray.util import placement_group; ray.init(); "
        "two = placement_group([dict(CPU=1, GPU=1)] * 2, strategy='STRICT_SPREAD'); "
        "two.wait(300); time.sleep(600)"
    )
    cluster.on_head(
        "ray job submit --no-wait --address http://127.0.0.1:8265 -- " + f'python -c "{long_job}"'
    )

    def busy() -> Any:
        status = cluster.sundog("status")
        assert status["head_error"] == ""
        assert status["usd_hour"] > 0
        return [n for n in status["nodes"] if n["pool"] == "a10g" and n["used"] == 1.0]

    until(lambda: len(busy()) == 2, 300)
    worker, other = busy()
    assert worker["market"] == other["market"] == "spot"
    # The head's ledger has them, and the head itself, which a laptop bought.
    until(lambda: {k.split()[0] for k in cluster.costs()} == {"head", "a10g"}, 60)
    # Their network, from one node's process to the other's: no CUDA here, so no GPU is waited for.
    probed = cluster.sundog("probe", "a10g")
    assert (probed["nodes"], probed["backend"]) == (2, "gloo")
    assert probed["bus_gbyte_s"] > 0
    assert any("a10g" in line for line in cluster.sundog("logs", "--lines", "5000"))
    joined = cluster.sundog("join")
    assert Path(joined["env"]["RAY_AUTH_TOKEN_PATH"]).read_text() == "1" * 64
    assert cluster.sundog("drain", worker["id"], "--yes")["state"] == "draining"
    assert next(n for n in cluster.sundog("status")["nodes"] if n["id"] == worker["id"])["draining"]
    before = {i["InstanceId"] for i in cloud.instances()}
    cluster.on_head("pkill -9 gcs_server")  # in the node's own process namespace
    # Ray gives a raylet 30 s to start, which a busy machine can miss; a person would go again.
    with contextlib.suppress(AssertionError):
        cluster.up()
    cluster.up()
    assert [i["InstanceId"] for i in cloud.instances(pool="head")] == [head["InstanceId"]]
    assert {i["InstanceId"] for i in cloud.instances()} <= before
    until(lambda: len(cloud.instances()) == 1)
    cluster.down()
    assert cloud.instances() == []
