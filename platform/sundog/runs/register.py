"""From a run's checkpoint to a registered model: rebuilt, exported, measured, with its lineage.

Applies the spec's register rule. How a version is stored is the registry's business.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sundog import telemetry
from sundog.errors import Conflict, RunError
from sundog.runs.driver import say
from sundog.runs.recipe import blamed
from sundog.spec.run import RegisterRule

if TYPE_CHECKING:
    from sundog.runs.checkpoint import Checkpoint
    from sundog.storage.models import ModelVersion, Registry
    from sundog.storage.root import Root
    from sundog.storage.runs import RunFolder


def register(
    root: Root,
    rule: RegisterRule,
    recipe: Any,
    checkpoint: Checkpoint,
    metrics: dict[str, float],
    lineage: dict[str, Any],
) -> tuple[ModelVersion | None, str | None, str]:
    """The new version, the alias that names it now, and why; no version: why not.

    An alias does not move to a version that is worse by the rule's own metric. RecipeError when the
    model cannot be rebuilt.
    """
    from sundog.storage.models import Registry

    good, why = rule.admits(metrics)
    if not good:
        return None, None, why
    registry = Registry(root)
    version = _registered_before(registry, rule.as_, lineage)
    if version is None:
        version = _export(registry, rule.as_, recipe, checkpoint, metrics, lineage)
    alias, moved = _point(registry, rule, version)
    return version, alias, f"{why}{moved}"


def announced(
    folder: RunFolder,
    rule: RegisterRule,
    registered: tuple[ModelVersion | None, str | None, str],
    origin: str = "",
) -> ModelVersion | None:
    """Say in the run's log what `register` has come to. `origin`: of what, ` from trial-003`."""
    version, alias, why = registered
    if version is None:
        say(folder, f"not registered as {rule.as_}: {why}")
        return None
    named = f" ({alias})" if alias else ""
    folder.event(telemetry.RUN_REGISTERED, model=version.ref, alias=alias)
    say(folder, f"registered {version.ref}{named}{origin} · {why}")
    return version


def _registered_before(
    registry: Registry, name: str, lineage: dict[str, Any]
) -> ModelVersion | None:
    """What a driver registered that was killed before it could say so in the run's record."""
    same = ("run", "step", "trial")
    if name not in registry.models():
        return None
    for version in registry.versions(name):
        if all(version.lineage.get(key) == lineage.get(key) for key in same):
            return version
    return None


def _export(
    registry: Registry,
    name: str,
    recipe: Any,
    checkpoint: Checkpoint,
    metrics: dict[str, float],
    lineage: dict[str, Any],
) -> ModelVersion:
    from sundog.runs.saver import unpack
    from sundog.storage.programs import export_program

    with blamed("recipe: model()"):
        model = recipe.model()
    try:
        model.load_state_dict(unpack(checkpoint)["model"])
    except RuntimeError as error:
        raise RunError(
            f"the checkpoint of step {checkpoint.step} is of another model: {error}",
            "put the recipe back as it was when the run was trained",
        ) from None
    model.eval()
    with blamed("recipe: example_inputs()"):
        inputs = recipe.example_inputs()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt2")
        with blamed("exporting the model"):
            signature = export_program(model, inputs, path)
        return registry.register(
            name, {"model.pt2": path}, kind="torch-export", signature=signature,
            metrics=metrics, lineage=lineage,
        )  # fmt: skip


def _point(registry: Registry, rule: RegisterRule, version: ModelVersion) -> tuple[str | None, str]:
    """Move the rule's alias by compare-and-swap, unless it names a better version."""
    if rule.alias is None:
        return None, ""
    while True:
        current = registry.aliases(rule.as_).get(rule.alias)
        if current is not None:
            before = registry.get(f"{rule.as_}@{current}")
            good, why = rule.not_worse(dict(version.metrics), dict(before.metrics))
            if not good:
                return None, f" · {rule.alias} stays {before.ref}: {why}"
        try:
            registry.set_alias(rule.as_, rule.alias, version.version, expect=current)
            return rule.alias, ""
        except Conflict:
            continue  # somebody moved it in between: compare with theirs
