"""`sundog`: parse, call, print. Whatever it does, the rooms below can do without it."""

from __future__ import annotations

import os
import sys

import typer

from sundog import __version__
from sundog.cli import (
    clusters,
    cost,
    drill,
    drill_service,
    jobs,
    keys,
    machine,
    models,
    rollout,
    runs,
    service,
    service_capture,
    services,
    sweeps,
)
from sundog.cli.output import Output, print_error
from sundog.errors import SundogError

app = typer.Typer(
    name="sundog",
    help="Elastic compute for AI on Ray. Start with `sundog doctor`, then `sundog init`.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

machine.register(app)
jobs.register(app)
runs.register(app)
drill_service.register(drill.app)
app.add_typer(drill.app, name="drill")
app.add_typer(sweeps.app, name="sweep")
app.add_typer(models.app, name="models")
services.register(app)
service_capture.register(service.app)
app.add_typer(service.app, name="service")
rollout.register(app)
app.add_typer(keys.app, name="keys")
app.add_typer(clusters.app, name="cluster")
cost.register(app)


def _version(asked: bool) -> None:
    if asked:
        print(f"sundog {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the CLI and exit: 0 done, 1 it failed, 2 asked wrongly, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    code = 0
    try:
        app(arguments)
    except SundogError as error:
        print_error(error, as_json="--json" in arguments)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # `sundog logs | head`: the reader has had enough. Keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


__all__ = ["Output", "app", "main"]
