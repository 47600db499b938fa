"""sundog service capture: what was kept of a service's requests and answers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from sundog.cli.connection import RootOption, storage_root
from sundog.cli.output import Json, Output
from sundog.clock import WALL
from sundog.errors import SpecError


def capture(
    name: Annotated[str, typer.Argument(help="The service.")],
    limit: Annotated[int, typer.Option("--limit", min=1, help="So many, the newest.")] = 20,
    since: Annotated[str | None, typer.Option("--since", help="Not older than 1h, 7d, …")] = None,
    root: RootOption = None,
    as_json: Json = False,
) -> None:
    """Sampled requests and answers, newest first. The spec's `capture: {share: 1%}` keeps them.

    Example: sundog service capture digits --since 1h --json
    """
    from sundog.serving.capture import read
    from sundog.spec.quantity import parse_duration_s

    out = Output(as_json)
    try:
        since_s = WALL.now_s() - parse_duration_s(since) if since else 0.0
    except ValueError as error:
        raise SpecError(f"--since: {error}") from None
    rows = [_plain(row) for row in read(storage_root(root), name, limit, since_s)]
    out.data(rows)
    out.table(
        ["at (UTC)", "version", "key", "inputs", "outputs", "id"],
        [
            (datetime.fromtimestamp(r["at_s"], UTC).strftime("%m-%d %H:%M:%S"), r["version"],
             r["key"], _brief(r["inputs"]), _brief(r["outputs"]), r["id"])
            for r in rows
        ],
        f"nothing was captured of {name!r}; its spec turns it on: capture: {{share: 1%}}",
    )  # fmt: skip


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Arrays as nested lists, bytes as text."""

    def of(value: Any) -> Any:
        if isinstance(value, list):
            return [of(v) for v in value]
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    return {
        k: {n: of(a.tolist()) for n, a in v.items()} if isinstance(v, dict) else v
        for k, v in row.items()
    }


def _brief(tensors: dict[str, Any]) -> str:
    said = " ".join(f"{n}={v}" for n, v in tensors.items())
    return said if len(said) <= 40 else f"{said[:39]}…"


def register(app: typer.Typer) -> None:
    app.command("capture")(capture)
