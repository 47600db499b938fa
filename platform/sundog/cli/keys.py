"""sundog keys: who may call the gateway. Control keeps hashes; a key is shown once."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sundog.cli.connection import control
from sundog.cli.output import Json, Output, Yes, age, confirm
from sundog.clock import WALL
from sundog.errors import SpecError

app = typer.Typer(
    help="API keys of the gateway. With none it serves everybody; with one, only those who have it.",
    no_args_is_help=True,
)

KeyId = Annotated[str, typer.Argument(help="The key's id, as `sundog keys list` shows it.")]


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
    quota: Annotated[
        int | None, typer.Option("--quota", min=1, help="Requests per day (UTC).")
    ] = None,
    quota_tokens: Annotated[
        int | None,
        typer.Option("--quota-tokens", min=1, help="Tokens per day, of services behind /v1."),
    ] = None,
    expires: Annotated[str | None, typer.Option("--expires", help="In 30d, 12h, …")] = None,
    as_json: Json = False,
) -> None:
    """Make a key and show it, this once.

    Example: sundog keys create mobile-app --service digits --rate 50 --quota 100000 --expires 90d
    """
    from sundog.spec.quantity import parse_duration_s

    out = Output(as_json)
    try:
        ttl_s = parse_duration_s(expires) if expires else None
    except ValueError as error:
        raise SpecError(f"--expires: {error}") from None
    for option, number in (("--rate", rate), ("--burst", burst)):
        if number is not None and not number > 0:
            raise SpecError(f"{option} {number:g} would let nothing through", "write 1 or more")
    made = control().create_key(
        name, scopes=service, rate=rate, burst=burst, quota=quota, quota_tokens=quota_tokens,
        ttl_s=ttl_s,
    )  # fmt: skip
    out.say(f"{made['key']}\n  shown this once; callers send it as: Authorization: Bearer <key>")
    out.data(made)


@app.command("list")
def list_keys(as_json: Json = False) -> None:
    """Every key, without the key itself.

    Example: sundog keys list
    """
    out, now = Output(as_json), WALL.now_s()
    rows = control().keys()
    out.data(rows)
    out.table(
        ["id", "name", "services", "rate/s", "used today", "state", "age"],
        [
            (r["key_id"], r["name"], " ".join(r["scopes"]), r["rate"] or "any", _used(r),
             _state(r, now), age(now - r["created_s"]))
            for r in rows
        ],
        "no keys: the gateway serves everybody who can reach it",
    )  # fmt: skip


def _used(row: dict[str, Any]) -> str:
    """`12/100 requests, 0/5000 tokens`; empty where the key has no quota."""
    quotas = {"requests": row["quota"], "tokens": row["quota_tokens"]}
    used = row.get("used", {})
    return ", ".join(f"{used.get(k, 0)}/{q} {k}" for k, q in quotas.items() if q is not None)


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
    made = control().rotate_key(key_id, overlap_s)
    out.say(f"{made['key']}\n  shown this once; {key_id} works for {age(overlap_s)} more")
    out.data(made)


@app.command()
def revoke(key_id: KeyId, yes: Yes = False, as_json: Json = False) -> None:
    """End a key at once, on every gateway.

    Example: sundog keys revoke 1a2b3c4d
    """
    out = Output(as_json)
    confirm(f"Revoke {key_id}? Its callers get 401 from then on.", yes)
    control().revoke_key(key_id)
    out.say(f"revoked {key_id}")
    out.data({"revoked": key_id})
