"""sundog cluster status, drain, logs, join, probe: what goes on in a cluster that is up."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sundog.cli.output import Json, Output, Yes, confirm
from sundog.errors import ClusterError

if TYPE_CHECKING:
    from sundog.capacity.head import Head

Spec = Annotated[str, typer.Argument(help="The spec that the cluster was started from.")]
MONITOR = "/tmp/ray/session_latest/logs/monitor.log"
PROBE_LIMIT_S = 300.0
TAGS_ONLY = "not asked (--tags-only)"


def register(app: typer.Typer) -> None:
    for command in (status, drain, logs, join, probe):
        app.command()(command)


def status(
    file: Spec,
    tags_only: Annotated[
        bool, typer.Option("--tags-only", help="Ask only the cloud, not the head over SSH.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Every node by pool, market, zone, price, age and use, $/h now, and what no rung gives and why.

    Example: sundog cluster status cluster-configs/specs/aws-train.yaml
    """
    from sundog.capacity.compiled import read_compiled
    from sundog.capacity.status import cluster_status, render, to_json

    out = Output(as_json)
    target = compiled_of(file)
    name = read_compiled(target)["cluster_name"]
    report, error = None, TAGS_ONLY
    if not tags_only:
        try:
            report, error = head_of(file).ask("report", name), ""
        except ClusterError as away:
            error = away.message
    found = cluster_status(target, report=report, head_error=error)
    out.say(render(found))
    out.data(to_json(found))


def drain(
    file: Spec,
    node: Annotated[str, typer.Argument(help="Its instance id, as `cluster status` shows it.")],
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.1, help="Time that its work has to move.")
    ] = 10.0,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Take a node out gently: no new work, runs checkpoint, replicas move, then it goes.

    Example: sundog cluster drain cluster-configs/specs/aws-train.yaml i-0abc12345
    """
    out = Output(as_json)
    compiled_of(file)
    confirm(f"Drain {node}? Its work moves; a node that is still wanted is bought anew.", yes)
    said = head_of(file).ask("drain", node, "--limit", str(minutes * 60))
    if "error" in said:
        raise ClusterError(str(said["error"]), str(said.get("fix", "")))
    out.say(f"{node} takes no new work, and goes when it is idle")
    out.data({"node": node, "ray_node": said["drained"], "state": "draining"})


def logs(
    file: Spec,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it is written.")] = False,
    as_json: Json = False,
) -> None:
    """The autoscaler's log on the head: every launch and refusal with its reason.

    Example: sundog cluster logs cluster-configs/specs/aws-train.yaml
    """
    out = Output(as_json)
    target = compiled_of(file)
    if follow:
        ray = str(Path(sys.executable).parent / "ray")
        subprocess.run([ray, "exec", str(target), f"tail -n {lines} -F {MONITOR}"], check=False)
        return
    said = head_of(file).text(f"tail -n {lines} {MONITOR}")
    out.say(said.rstrip("\n"))
    out.data(said.splitlines())


def join(
    file: Annotated[str, typer.Argument(help="The cluster's spec or its compiled file.")],
    as_json: Json = False,
) -> None:
    """Let this laptop in: the cluster's endpoint and token, and SSH by your own cloud identity.

    Example: sundog cluster join cluster-configs/specs/aws-train.yaml
    """
    from sundog.capacity.compiled import config_of
    from sundog.capacity.join import join as join_cluster

    out = Output(as_json)
    joined = join_cluster(config_of(file))
    out.say(f"joined {joined.cluster} (head {joined.head}); its files are in {joined.folder}")
    out.say("1. in one shell, bring its ports here:\n   " + joined.tunnel)
    out.say("2. in another, point the tools at it:")
    for key, value in joined.env.items():
        out.say(f"   export {key}={value}")
    out.say(f"SSH into the head: {joined.ssh}")
    out.data(asdict(joined))


def probe(
    file: Spec,
    pool: Annotated[str, typer.Argument(help="The pool: two or more of its nodes must be up.")],
    nodes: Annotated[
        int | None, typer.Option("--nodes", min=2, help="This many of them; else all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the network between a pool's nodes with an all-reduce, before a long run.

    Example: sundog cluster probe cluster-configs/specs/aws-train.yaml a10g-x4
    """
    out = Output(as_json)
    words = ["probe", pool, *(["--nodes", str(nodes)] if nodes else [])]
    said = head_of(file).ask(*words, limit_s=PROBE_LIMIT_S)
    if "error" in said:
        raise ClusterError(str(said["error"]), str(said.get("fix", "")))
    found = said["probe"]
    out.say(
        f"{found['nodes']} nodes of {found['pool']}, {found['backend']}: "
        f"{found['bus_gbyte_s']:.2f} GB/s (all-reduce of {found['mbytes']:.0f} MiB, bus bandwidth), "
        f"{found['latency_ms']:.2f} ms for a few bytes"
    )
    if len(found["zones"]) > 1:
        out.say(
            f"they lie in {len(found['zones'])} zones ({', '.join(found['zones'])}): `one_zone: true` "
            "in the pool keeps a gang together"
        )
    out.data(found)


def head_of(file: str) -> Head:
    """The head of the cluster of a spec, to be asked over SSH."""
    from sundog.capacity.check import read_spec
    from sundog.capacity.head import Head

    return Head(compiled_of(file), read_spec(file).spec)


def compiled_of(file: str) -> Path:
    from sundog.capacity.compile import compiled_name

    target = compiled_name(file)
    if not target.is_file():
        raise ClusterError(f"{target} is not there", f"write it: sundog cluster compile {file}")
    return target
