"""sundog rollout, sundog rollback: how a new version takes over, and the way back."""

from __future__ import annotations

import getpass
from typing import Annotated, Any

import typer

from sundog.cli.connection import control
from sundog.cli.output import Json, Output, Yes, confirm, duration
from sundog.clock import WALL
from sundog.errors import NotFound

app = typer.Typer(
    help="New versions of a service: how far they are, what was seen, and what to do about it.",
    no_args_is_help=True,
)

Service = Annotated[str, typer.Argument(help="The service.")]
_WORDS = {"rolled-back": "rolled back"}
_SHOWN = 5


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="rollout")
    root.command()(rollback)


@app.command()
def status(service: Service, as_json: Json = False) -> None:
    """The rollout that runs, or the last one: traffic, evidence, reason.

    Example: sundog rollout status digits
    """
    out = Output(as_json)
    document = control().rollout(service)
    if document is None:
        raise NotFound(
            f"{service} has had no rollout",
            "one starts when a service whose spec has `rollout: {strategy: canary}` gets another "
            "version",
        )
    out.data(document)
    show(out, document)


def show(out: Output, document: dict[str, Any]) -> None:
    now_s, phase = WALL.now_s(), document["phase"]
    model, plan = document["model"], document["plan"]
    shares = ", ".join(
        f"{100 * w:.4g}% to version {v}" for v, w in document["weights"].items() if w
    )
    step = ""
    if phase == "stepping":
        step = f", step {document['step'] + 1} of {len(plan['steps'])}"
    for_s = duration(max(0.0, now_s - document["since_s"]))
    out.say(
        f"{model}@{document['candidate']} against {model}@{document['baseline']} · "
        f"{document['strategy']} · {_WORDS.get(phase, phase)}{step} for {for_s}"
    )
    out.say(f"  traffic  {shares}" + (f", {document['mirror']:.0%} mirrored"
                                      if document["mirror"] else ""))  # fmt: skip
    for reading in document["evidence"]:
        out.say(f"  {reading['said']}")
    out.say(f"  {document['reason']}")
    differences = document["differences"][-_SHOWN:]
    if differences:
        out.say(f"  answers that differed, the last {len(differences)}:")
    for one in differences:
        both = " · ".join(
            f"{v}: {one.get(v)}" for v in (document["baseline"], document["candidate"])
        )
        out.say(f"    {one['request']}  {both}  furthest {one['furthest']:.3g}")


def _command(service: str, command: str, as_json: bool) -> None:
    out = Output(as_json)
    document = control().command_rollout(service, command, by=_who())
    out.data(document)
    show(out, document)


@app.command()
def pause(service: Service, as_json: Json = False) -> None:
    """Traffic stays as it is; what is harmful still rolls back.

    Example: sundog rollout pause digits
    """
    _command(service, "pause", as_json)


@app.command()
def resume(service: Service, as_json: Json = False) -> None:
    """Go on after a pause.

    Example: sundog rollout resume digits
    """
    _command(service, "resume", as_json)


@app.command()
def promote(service: Service, yes: Yes = False, as_json: Json = False) -> None:
    """All traffic to the new version now, whatever the evidence says.

    Example: sundog rollout promote digits
    """
    confirm(f"Give all traffic of {service} to its new version, shown to be good or not?", yes)
    _command(service, "promote", as_json)


@app.command()
def abort(service: Service, yes: Yes = False, as_json: Json = False) -> None:
    """All traffic back to the running version; the new one goes.

    Example: sundog rollout abort digits
    """
    confirm(f"Take the new version of {service} away?", yes)
    _command(service, "abort", as_json)


@app.command()
def start(service: Service, as_json: Json = False) -> None:
    """Try again the version that was rolled back.

    Example: sundog rollout start digits
    """
    out = Output(as_json)
    document = control().start_rollout(service)
    out.say(f"version {document['candidate']} of {service} is tried again")
    out.data(document)


def rollback(
    service: Service,
    version: Annotated[
        str | None, typer.Argument(help="Back to this one; else to what answered before.")
    ] = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """An earlier version answers again, at once and without a rollout; its alias follows.

    Example: sundog rollback digits 2
    """
    out = Output(as_json)
    confirm(f"Return {service} to {'version ' + version if version else 'what it was'}?", yes)
    document = control().rollback(service, version, by=_who())
    out.say(f"{service} returns to version {document['version']}")
    out.data(document)


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "somebody"
