"""sundog cluster logs: what the autoscaler on the head said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from sundog.cli.output import Json, Output
from sundog.errors import ClusterError

Spec = Annotated[str, typer.Argument(help="The spec that the cluster was started from.")]
MONITOR = "/tmp/ray/session_latest/logs/monitor.log"


def register(app: typer.Typer) -> None:
    app.command()(logs)


def logs(
    file: Spec,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many.")] = 100,
    as_json: Json = False,
) -> None:
    """The autoscaler's log on the head: every launch and refusal with its reason.

    Example: sundog cluster logs cluster-configs/specs/aws-train.yaml
    """
    out = Output(as_json)
    ray = str(Path(sys.executable).parent / "ray")
    command = [ray, "exec", str(_compiled(file)), f"tail -n {lines} {MONITOR}"]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ClusterError(
            f"`ray exec` ended with {done.returncode}",
            f"is the cluster up? sundog cluster status {file}",
        )
    out.say(done.stdout.rstrip("\n"))
    out.data(done.stdout.splitlines())


def _compiled(file: str) -> Path:
    from sundog.capacity.compile import compiled_name

    target = compiled_name(file)
    if not target.is_file():
        raise ClusterError(f"{target} is not there", f"write it: sundog cluster compile {file}")
    return target
