"""sundog models: what the registry holds, and who may be called what."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sundog.cli.connection import RootOption, storage_root
from sundog.cli.output import Json, Output, Yes, age, confirm
from sundog.clock import WALL
from sundog.errors import SpecError, SundogError

app = typer.Typer(
    help="Registered models: list, look, name, verify, import, delete.", no_args_is_help=True
)

Reference = Annotated[str, typer.Argument(help="name@version, name@alias or name (the latest).")]


def _registry(root: str | None) -> Any:
    from sundog.storage.models import Registry

    return Registry(storage_root(root))


@app.command("list")
def list_models(
    name: Annotated[str | None, typer.Argument(help="Only this model, all its versions.")] = None,
    root: RootOption = None,
    as_json: Json = False,
) -> None:
    """Every model, or every version of one.

    Example: sundog models list digits
    """
    registry, out = _registry(root), Output(as_json)
    rows = []
    for model in [name] if name else registry.models():
        aliases: dict[int, list[str]] = {}
        for alias, number in registry.aliases(model).items():
            aliases.setdefault(number, []).append(alias)
        versions = registry.versions(model)
        for version in versions if name else versions[-1:]:
            rows.append((version, aliases.get(version.version, []), aliases))
    now = WALL.now_s()
    out.table(
        ["model", "kind", "aliases", "metrics", "age"],
        [
            (
                v.ref, v.kind,
                " ".join(mine) if name else " ".join(f"{a}→{n}" for n, s in every.items() for a in s),
                _metrics(v.metrics), age(now - v.created_s),
            )
            for v, mine, every in rows
        ],
        "no models yet; a run registers one (`register:` in its spec), or `sundog models import`",
    )  # fmt: skip
    out.data([{**asdict(v), "aliases": mine} for v, mine, _ in rows])


def _metrics(metrics: dict[str, float]) -> str:
    return " · ".join(f"{k} {v:.4g}" for k, v in sorted(metrics.items())[:4])


@app.command()
def show(reference: Reference, root: RootOption = None, as_json: Json = False) -> None:
    """One version: signature, metrics, lineage, files, who serves it.

    Example: sundog models show digits@champion
    """
    registry, out = _registry(root), Output(as_json)
    version = registry.get(reference)
    holders = registry.holds(version.name, version.version)
    out.data({**asdict(version), "served_by": holders})
    aliases = [a for a, n in registry.aliases(version.name).items() if n == version.version]
    out.say(f"{version.ref} · {version.kind}" + (f" · {', '.join(aliases)}" if aliases else ""))
    out.say(f"takes    {_tensors(version.signature.inputs)}")
    out.say(f"gives    {_tensors(version.signature.outputs)}")
    out.say(f"metrics  {_metrics(version.metrics)}")
    for key, value in version.lineage.items():
        out.say(f"{key:<8} {value}")
    for path, digest in version.files.items():
        out.say(f"file     {path}  sha256 {digest[:16]}…")
    if holders:
        out.say(f"served   by {', '.join(holders)}")


def _tensors(specs: Any) -> str:
    return ", ".join(f"{t.name} {t.datatype} {list(t.shape)}" for t in specs)


@app.command()
def alias(
    name: Annotated[str, typer.Argument(help="The model.")],
    alias_name: Annotated[str, typer.Argument(metavar="ALIAS", help="champion, candidate, …")],
    version: Annotated[int, typer.Argument(help="The version it shall name.")],
    root: RootOption = None,
    as_json: Json = False,
) -> None:
    """Point an alias at a version. Services that follow it roll over by themselves.

    Example: sundog models alias digits champion 3
    """
    registry, out = _registry(root), Output(as_json)
    before = registry.aliases(name).get(alias_name)
    registry.set_alias(name, alias_name, version, expect=before)
    out.say(f"{name}@{alias_name}: {before or 'nothing'} → {version}")
    out.data({"model": name, "alias": alias_name, "before": before, "version": version})


@app.command()
def verify(reference: Reference, root: RootOption = None, as_json: Json = False) -> None:
    """Read every byte of a version and compare it with what was registered.

    Example: sundog models verify digits@champion
    """
    registry, out = _registry(root), Output(as_json)
    faults = registry.verify(reference)
    out.data({"model": reference, "faults": faults})
    for fault in faults:
        out.say(f"{reference}: {fault}")
    if faults:
        if as_json:
            raise typer.Exit(1)
        raise SundogError(
            f"{reference} is damaged", "register it again from its run, or move its aliases back"
        )
    out.say(f"{reference}: every file is what was registered")


@app.command("import")
def import_model(
    name: Annotated[str, typer.Argument(help="The model's name in the registry.")],
    path: Annotated[
        Path, typer.Argument(help="A .pt2 of torch.export, or a folder with a python model.")
    ],
    entry: Annotated[
        str | None, typer.Option("--entry", help="module:Class of a python model.")
    ] = None,
    signature: Annotated[
        Path | None,
        typer.Option(
            "--signature", help="YAML or JSON: inputs and outputs (name, datatype, shape)."
        ),
    ] = None,
    alias_name: Annotated[
        str | None, typer.Option("--alias", help="Point this alias at it.")
    ] = None,
    new_signature: Annotated[
        bool, typer.Option("--new-signature", help="It takes or gives something else than before.")
    ] = False,
    root: RootOption = None,
    as_json: Json = False,
) -> None:
    """Register a model that was not trained here.

    Example: sundog models import resnet ./resnet.pt2 --alias champion
    Example: sundog models import rules ./rules/ --entry rules:Model --signature rules/signature.yaml
    """
    registry, out = _registry(root), Output(as_json)
    if not path.exists():
        raise SpecError(f"{path}: there is no such file or folder", "is the path right?")
    given = _read_signature(signature) if signature else None
    if entry or path.is_dir():
        if not entry or given is None:
            raise SpecError(
                "a python model needs --entry module:Class and --signature FILE",
                "the signature says what comes in and goes out: see `sundog models import --help`",
            )
        version = registry.import_python(
            name, path, entry, given, alias=alias_name, new_signature=new_signature
        )
    else:
        version = registry.import_export(
            name, path, given, alias=alias_name, new_signature=new_signature
        )
    out.say(f"registered {version.ref}" + (f" ({alias_name})" if alias_name else ""))
    out.data(asdict(version))


def _read_signature(path: Path) -> Any:
    from sundog.spec.load import read_text, read_yaml
    from sundog.storage.models import Signature, TensorSpec

    data, _ = read_yaml(read_text(path), str(path))
    try:
        return Signature(*(
            tuple(TensorSpec(t["name"], t["datatype"], tuple(int(n) for n in t["shape"])) for t in data[side])
            for side in ("inputs", "outputs")
        ))  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise SpecError(
            f"{path}: not a signature: {error!r}",
            "write inputs: and outputs:, each a list of {name: x, datatype: FP32, shape: [-1, 8]}",
        ) from None


@app.command()
def delete(
    reference: Annotated[str, typer.Argument(help="name@version.")],
    force: Annotated[bool, typer.Option("--force", help="Even while a service holds it.")] = False,
    yes: Yes = False,
    root: RootOption = None,
    as_json: Json = False,
) -> None:
    """Delete a version. Refused while a service serves it or an alias names it.

    Example: sundog models delete digits@1
    """
    registry, out = _registry(root), Output(as_json)
    version = registry.get(reference)
    confirm(f"Delete {version.ref} for good?", yes)
    registry.delete(version.ref, force=force)
    out.say(f"deleted {version.ref}; its number is not given again")
    out.data({"deleted": version.ref})
