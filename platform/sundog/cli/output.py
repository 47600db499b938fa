"""What the CLI prints: one way to say a thing to a person, and the same thing as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sundog.errors import SundogError

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


class Output:
    """Text for people, or JSON: a command fills in both and never asks which is wanted."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        # Without emoji: `run.yaml:100:` would lose its line number to one.
        self._console = Console(highlight=False, soft_wrap=True, emoji=False)

    def say(self, text: str) -> None:
        """A line for people only."""
        if not self.as_json:
            self._console.print(text, markup=False)

    def data(self, value: Any) -> None:
        """The result, for programs only."""
        if self.as_json:
            print(json.dumps(value, indent=1, default=str))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
        if self.as_json:
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        count = 0
        for row in rows:
            table.add_row(*("" if cell is None else str(cell) for cell in row))
            count += 1
        if count:
            self._console.print(table, markup=False)
        else:
            self.say(empty)


def print_error(error: SundogError, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": error.message, "fix": error.fix}))
    else:
        print(str(error), file=sys.stderr)


def confirm(question: str, yes: bool) -> None:
    """Ask before something that cannot be undone. Not a terminal and no --yes: refuse."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise SundogError(f"{question} Nobody is here to answer.", "add --yes to go ahead")
    typer.confirm(question, abort=True)


def age(seconds: float) -> str:
    """`90` -> `1 min`: one unit, the largest that fits."""
    for name, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {name}"
    return f"{int(max(seconds, 0))} s"


def duration(seconds: float | None) -> str:
    """`754` -> `12 min 34 s`."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
