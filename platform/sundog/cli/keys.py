"""sundog keys: who may call the gateway. Control keeps hashes; a key is shown once."""

from __future__ import annotations

import logging
import os
from typing import Annotated, Any

import typer

from sundog.cli.connection import endpoints
from sundog.cli.output import Json, Output, Yes, age, confirm
from sundog.clock import WALL
from sundog.errors import ClusterError, SpecError

app = typer.Typer(
    help="API keys of the gateway. With none it serves everybody; with one, only those who have it.",
    no_args_is_help=True,
)

KeyId = Annotated[str, typer.Argument(help="The key's id, as `sundog keys list` shows it.")]


def _control() -> Any:
    """Control, over Ray: inside a job, or beside a Ray that runs on this machine."""
    import ray

    from sundog.control.client import ControlClient

    found = endpoints()
    if found is not None:
        os.environ.update({k: v for k, v in found.env().items() if v})
    if not os.environ.get("RAY_ADDRESS"):
        raise ClusterError(
            "keys are kept by the cluster's control, and no Ray runs on this machine",
            "ask it from inside: ray job submit -- python -m sundog keys list",
        )
    try:
        ray.init(
            address=os.environ["RAY_ADDRESS"], logging_level=logging.ERROR, log_to_driver=False
        )
    except (ConnectionError, RuntimeError) as error:
        raise ClusterError(
            f"no Ray at {os.environ['RAY_ADDRESS']}: {str(error).splitlines()[0]}",
            'is it up? eval "$(sundog env)" in its folder',
        ) from None
    return ControlClient()


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose it is, or what for.")],
    service: Annotated[
        list[str] | None,
        typer.Option("--service", help="Only this service (again for more; * works)."),
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Requests per second.")] = None,
    burst: Annotated[
        float | None, typer.Option("--burst", help="At once, before the rate holds.")
    ] = None,
    expires: Annotated[str | None, typer.Option("--expires", help="In 30d, 12h, …")] = None,
    as_json: Json = False,
) -> None:
    """Make a key and show it, this once.

    Example: sundog keys create mobile-app --service digits --rate 50 --expires 90d
    """
    from sundog.spec.quantity import parse_duration_s

    out = Output(as_json)
    try:
        ttl_s = parse_duration_s(expires) if expires else None
    except ValueError as error:
        raise SpecError(f"--expires: {error}") from None
    made = _control().create_key(name, scopes=service, rate=rate, burst=burst, ttl_s=ttl_s)
    out.say(f"{made['key']}\n  shown this once; callers send it as: Authorization: Bearer <key>")
    out.data(made)


@app.command("list")
def list_keys(as_json: Json = False) -> None:
    """Every key, without the key itself.

    Example: sundog keys list
    """
    out, now = Output(as_json), WALL.now_s()
    rows = _control().keys()
    out.data(rows)
    out.table(
        ["id", "name", "services", "rate/s", "state", "age"],
        [
            (r["key_id"], r["name"], " ".join(r["scopes"]), r["rate"] or "any", _state(r, now),
             age(now - r["created_s"]))
            for r in rows
        ],
        "no keys: the gateway serves everybody who can reach it",
    )  # fmt: skip


def _state(row: dict[str, Any], now: float) -> str:
    if row.get("revoked_s") is not None and row["revoked_s"] <= now:
        return "revoked"
    if row.get("expires_s") is None:
        return "valid"
    return "expired" if row["expires_s"] <= now else f"{age(row['expires_s'] - now)} left"


@app.command()
def rotate(
    key_id: KeyId,
    overlap: Annotated[
        str, typer.Option("--overlap", help="How long the old one works on.")
    ] = "1d",
    as_json: Json = False,
) -> None:
    """A new key for the same caller; the old one works on for a while.

    Example: sundog keys rotate 1a2b3c4d --overlap 2h
    """
    from sundog.spec.quantity import parse_duration_s

    out = Output(as_json)
    try:
        overlap_s = parse_duration_s(overlap)
    except ValueError as error:
        raise SpecError(f"--overlap: {error}") from None
    made = _control().rotate_key(key_id, overlap_s)
    out.say(f"{made['key']}\n  shown this once; {key_id} works for {age(overlap_s)} more")
    out.data(made)


@app.command()
def revoke(key_id: KeyId, yes: Yes = False, as_json: Json = False) -> None:
    """End a key at once, on every gateway.

    Example: sundog keys revoke 1a2b3c4d
    """
    out = Output(as_json)
    confirm(f"Revoke {key_id}? Its callers get 401 from then on.", yes)
    _control().revoke_key(key_id)
    out.say(f"revoked {key_id}")
    out.data({"revoked": key_id})
