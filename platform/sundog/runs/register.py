"""From a run's checkpoint to a registered model: rebuilt, exported, measured, with its lineage.

Applies the spec's register rule. How a version is stored is the registry's business.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sundog.errors import RunError
from sundog.runs.recipe import blamed
from sundog.spec.run import RegisterRule

if TYPE_CHECKING:
    from sundog.runs.checkpoint import Checkpoint
    from sundog.storage.models import ModelVersion
    from sundog.storage.root import Root


def register(
    root: Root,
    rule: RegisterRule,
    recipe: Any,
    checkpoint: Checkpoint,
    metrics: dict[str, float],
    lineage: dict[str, Any],
) -> tuple[ModelVersion | None, str]:
    """The new version, or None and why not. RecipeError when the model cannot be rebuilt."""
    from sundog.runs.saver import unpack
    from sundog.storage.models import Registry
    from sundog.storage.programs import export_program

    good, why = rule.admits(metrics)
    if not good:
        return None, why
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
        version = Registry(root).register(
            rule.as_, {"model.pt2": path}, kind="torch-export", signature=signature,
            metrics=metrics, lineage=lineage, alias=rule.alias,
        )  # fmt: skip
    return version, why
