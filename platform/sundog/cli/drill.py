"""sundog drill: break a live run for real, and print what that cost."""

from __future__ import annotations

from typing import Annotated

import typer

from sundog.cli.connection import RootOption, storage_root
from sundog.cli.output import Json, Output, Yes, confirm
from sundog.clock import WALL
from sundog.errors import ClusterError, SpecError

app = typer.Typer(help="Faults on purpose, to see what they cost.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def run(
    run_id: Annotated[str, typer.Argument(help="A run that is training, such as digits-3.")],
    notice: Annotated[
        bool,
        typer.Option(
            "--notice", help="A preemption notice to a worker's node, which is killed 120 s later."
        ),
    ] = False,
    kill_worker: Annotated[
        bool, typer.Option("--kill-worker", help="kill -9 of one worker. The default.")
    ] = False,
    kill_node: Annotated[
        bool, typer.Option("--kill-node", help="kill -9 of Ray on a worker's node.")
    ] = False,
    wait: Annotated[
        float,
        typer.Option(
            help="Seconds to wait for the next step and a checkpoint after it; of a notice, from its end."
        ),
    ] = 180,
    yes: Yes = False,
    root: RootOption = None,
    as_json: Json = False,
) -> None:
    """One real fault to a running run, and its receipt: seconds, steps, samples, dollars.

    Example: sundog drill run digits-3 --kill-worker
    Example: ray job submit -- python -m sundog drill run digits-3 --notice --yes
    """
    from sundog.runs import drill
    from sundog.storage.runs import open_run

    asked = [
        fault
        for fault, on in (
            (drill.NOTICE, notice), (drill.KILL_WORKER, kill_worker), (drill.KILL_NODE, kill_node)
        )
        if on
    ]  # fmt: skip
    if len(asked) > 1:
        raise SpecError(f"--{' and --'.join(asked)}: one fault at a time", "choose one of them")
    out, folder = Output(as_json), open_run(storage_root(root), run_id)
    fault = asked[0] if asked else drill.KILL_WORKER
    drill.choose(folder.record(), drill.KILL_WORKER)  # a run that is over needs no connection
    head = _connect()
    target = drill.choose(folder.record(), fault, head)
    out.say(target.question)
    confirm("Go ahead?", yes)
    since_s = WALL.now_s()
    drill.strike(target)
    timeout_s = wait + (drill.NOTICE_S if fault == drill.NOTICE else 0.0)
    receipt = drill.watch(folder, target, since_s, timeout_s=timeout_s)
    for line in receipt.lines:
        out.say(line)
    out.data({"run_id": run_id, **receipt.data})
    if receipt.lost or receipt.duplicated:
        raise typer.Exit(1)


def _connect() -> str | None:
    """Connect to the run's Ray; the id of its head node."""
    import os

    import ray

    from sundog.cli.connection import endpoints
    from sundog.runs import place

    found = endpoints()
    if found is not None:
        os.environ.update({k: v for k, v in found.env().items() if v})
    if not os.environ.get("RAY_ADDRESS"):
        # Never "auto": what else runs on this machine is not the run's cluster.
        raise ClusterError(
            "a fault is done inside the run's cluster, and no Ray of it runs on this machine",
            "ray job submit -- python -m sundog drill run RUN --yes",
        )
    place.connect()
    heads = [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and "node:__internal_head__" in node["Resources"]
    ]
    return heads[0] if heads else None
