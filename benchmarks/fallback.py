"""How long until a refused spot request becomes an on-demand one: Sundog's provider and plain Ray's.

Both are driven by Ray's own autoscaler (v2, in this process) against moto's EC2 in a server process
that refuses every spot launch and takes 100 ms for each API call. The demand is one GPU. Measured
from the first capacity error to the arrival of the on-demand launch call.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from this_machine import machine

HERE = Path(__file__).resolve().parent
SERVER = HERE.parent / "tests" / "cloud" / "scripted_ec2.py"
SPEC = HERE.parent / "cluster-configs" / "specs" / "aws-train.yaml"
UPDATE_S = 1.0
START_LIMIT_S = 60.0


@contextlib.contextmanager
def ec2(folder: Path) -> Iterator[str]:
    """A scripted EC2 in a process of its own; yields its address."""
    port_file = folder / f"port-{time.monotonic_ns()}"
    server = subprocess.Popen(
        [sys.executable, str(SERVER), "--port-file", str(port_file)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while not port_file.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the EC2 test server did not start; is moto[server] installed?")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port_file.read_text()}"
    finally:
        server.terminate()
        server.wait()


def tell(url: str, script: dict[str, Any]) -> None:
    request = urllib.request.Request(f"{url}/__script__", json.dumps(script).encode())
    urllib.request.urlopen(request, timeout=10).read()


def calls(url: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{url}/__calls__", timeout=10) as answer:
        found: list[dict[str, Any]] = json.loads(answer.read())
    return found


class OneGpuWanted:
    """The part of the GCS that the autoscaler reads: a head, and one task that needs a GPU."""

    address = "127.0.0.1:1"

    def __init__(self, head: str) -> None:
        self.head, self.version = head, 0

    def get_cluster_resource_state(self) -> bytes:
        from ray.core.generated import autoscaler_pb2 as pb

        self.version += 1
        state = pb.ClusterResourceState(
            cluster_resource_state_version=self.version, cluster_session_name="bench"
        )
        head = state.node_states.add(
            node_id=b"h" * 28, instance_id=self.head, ray_node_type_name="head",
            status=pb.NodeStatus.RUNNING, node_state_version=1,
        )  # fmt: skip
        for name in ("memory", "node:__internal_head__"):  # the second is how Ray knows its head
            head.total_resources[name] = head.available_resources[name] = 1.0
        demand = state.pending_resource_requests.add(count=1)
        demand.request.resources_bundle["GPU"] = 1.0
        reply = pb.GetClusterResourceStateReply(cluster_resource_state=state)
        return bytes(reply.SerializeToString())


def autoscaler(url: str, folder: Path, cluster: str, elastic: bool) -> Any:
    """Ray's autoscaler over the compiled training cluster, its head already running."""
    import yaml
    from ray.autoscaler._private.providers import _get_node_provider, _get_node_provider_cls
    from ray.autoscaler._private.util import prepare_config
    from ray.autoscaler.v2.autoscaler import Autoscaler
    from ray.autoscaler.v2.instance_manager.config import FileConfigReader

    from sundog.capacity.compile import compile_cluster

    spec = yaml.safe_load(SPEC.read_text())
    spec["cluster"], spec["cloud"]["aws"]["endpoint"] = cluster, url
    spec["cloud"]["aws"] |= {"head_role": "sundog-head", "node_role": "sundog-node"}
    spec["pools"] = {"a10g": spec["pools"]["a10g"]}
    spec["network"] = {"security_group": _group(url)}
    path = folder / f"{cluster}.spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    config = compile_cluster(path, plain=not elastic).documents[0]
    config["provider"]["disable_node_updaters"] = True
    config["file_mounts"] = {}
    config = prepare_config(config)
    config = _get_node_provider_cls(config["provider"]).bootstrap_config(config)
    compiled = folder / f"{cluster}.yaml"
    compiled.write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    provider = _get_node_provider(config["provider"], cluster)
    head_config = config["available_node_types"]["head"]["node_config"]
    tags = {
        "ray-node-type": "head", "ray-user-node-type": "head", "ray-node-name": "head",
        "ray-launch-config": "x",
    }  # fmt: skip
    provider.create_node(head_config, tags, 1)
    [head] = provider.non_terminated_nodes({"ray-node-type": "head"})
    return Autoscaler("bench", FileConfigReader(str(compiled)), OneGpuWanted(head))


def profiles(url: str) -> None:
    """The two instance profiles that the Terraform of a real account makes."""
    import boto3

    iam = boto3.client("iam", region_name="us-east-1", endpoint_url=url)
    for name in ("sundog-head", "sundog-node"):
        iam.create_instance_profile(InstanceProfileName=name)


def _group(url: str) -> str:
    import boto3

    client = boto3.client("ec2", region_name="us-east-1", endpoint_url=url)
    return str(client.describe_security_groups()["SecurityGroups"][0]["GroupId"])


def workers(url: str, since: int) -> list[dict[str, Any]]:
    return [c for c in calls(url)[since:] if c["shape"].startswith("g5.")]


def run_once(url: str, folder: Path, cluster: str, elastic: bool, limit_s: float) -> dict[str, Any]:
    """Drive the autoscaler until an on-demand launch is asked for, or the time is up."""
    tell(url, {"refuse": [], "latency_s": 0.0})
    before = len(calls(url))
    scaler = autoscaler(url, folder, cluster, elastic)
    tell(url, {"refuse": [{"market": "spot"}], "latency_s": 0.1})
    start = time.monotonic()
    while time.monotonic() - start < limit_s:
        scaler.update_autoscaling_state()
        if any(c["market"] == "on-demand" for c in workers(url, before)):
            break
        time.sleep(UPDATE_S if not elastic else 0.05)
    made = workers(url, before)
    refused = [c for c in made if c["refused"]]
    full = next((c for c in made if c["market"] == "on-demand"), None)
    to_full = made[: made.index(full) + 1] if full else made
    return {
        "seconds": full["at_s"] - refused[0]["answered_s"] if full and refused else None,
        "launch_calls": len(to_full),
        "rungs": len({(c["zone"], c["shape"], c["market"]) for c in to_full}),
    }


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--runs", type=int, help="clusters tried with Sundog (default 50, quick 5)")
    parser.add_argument(
        "--ray-seconds", type=float, help="how long plain Ray may try (150, quick 15)"
    )
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    runs = arguments.runs or (5 if arguments.quick else 50)
    ray_s = arguments.ray_seconds or (15.0 if arguments.quick else 150.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.update(
            HOME=name, SUNDOG_STATE_DIR=name, AWS_ACCESS_KEY_ID="testing",
            AWS_SECRET_ACCESS_KEY="testing", AWS_DEFAULT_REGION="us-east-1",
        )  # fmt: skip
        result = measure(folder, runs, ray_s)
    print_result(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def measure(folder: Path, runs: int, ray_s: float) -> dict[str, Any]:
    with ec2(folder) as url:
        os.environ["AWS_ENDPOINT_URL"] = url
        profiles(url)
        with contextlib.redirect_stdout(sys.stderr):
            ours = [run_once(url, folder, f"ours-{i}", True, 60.0) for i in range(runs)]
            plain = run_once(url, folder, "plain", False, ray_s)
    seconds = [o["seconds"] for o in ours if o["seconds"] is not None]
    if len(seconds) < runs:
        raise SystemExit(f"{runs - len(seconds)} of {runs} runs never asked for on-demand")
    return {
        "sundog": {
            "seconds_p50": round(statistics.median(seconds), 3),
            "seconds_p99": round(percentile(seconds, 0.99), 3),
            "launch_calls": max(o["launch_calls"] for o in ours),
            "calls_per_rung": max(o["launch_calls"] / o["rungs"] for o in ours),
            "runs": runs,
        },
        "ray": {
            "seconds_p50": plain["seconds"], "seconds_p99": plain["seconds"],
            "launch_calls": plain["launch_calls"], "tried_for_s": ray_s,
        },
        "latency_s": 0.1,
        "machine": machine(),
    }  # fmt: skip


def print_result(result: dict[str, Any]) -> None:
    ours, plain = result["sundog"], result["ray"]
    print(
        f"sundog  p50 {ours['seconds_p50']:.2f} s · p99 {ours['seconds_p99']:.2f} s · "
        f"{ours['launch_calls']} launch calls, {ours['calls_per_rung']:.0f} a rung · {ours['runs']} runs"
    )
    said = "never" if plain["seconds_p50"] is None else f"{plain['seconds_p50']:.2f} s"
    print(f"ray     {said} in {plain['tried_for_s']:.0f} s · {plain['launch_calls']} launch calls")


if __name__ == "__main__":
    main()
