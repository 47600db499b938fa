"""Where a run's first weights come from when not from its recipe: a registered version of a model.

Reads tensors out of an exported program; runs none of its code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sundog.errors import RunError
from sundog.storage.root import Root

if TYPE_CHECKING:
    import torch


def pin(root: Root, reference: str | None, before: str | None = None) -> str | None:
    """`digits@champion` -> `digits@3`, and what a run began with stays when it resumes. NotFound."""
    from sundog.storage.models import Registry

    if reference is None or before is not None:
        return before
    return Registry(root).get(reference).ref


def load_weights(root: Root, reference: str, model: torch.nn.Module) -> list[str]:
    """Put the version's weights into `model`; the names of those that the version does not have.

    A layer of another shape (a head for other classes) keeps the recipe's own weights. RunError when
    the version is no exported program, or shares nothing with the model.
    """
    found = _state(root, reference)
    mine = model.state_dict()
    fits = {n: v for n, v in found.items() if n in mine and mine[n].shape == v.shape}
    if not fits:
        raise RunError(
            f"init_from: {reference} has no weight in common with the recipe's model",
            "name a version that was trained with the same recipe",
        )
    model.load_state_dict(fits, strict=False)
    return sorted(set(mine) - set(fits))


def kept_own(names: list[str]) -> str:
    """What to say of the weights that the version did not have."""
    if not names:
        return ""
    return f", but for {len(names)} of the recipe's own: {', '.join(names[:3])}" + (
        "…" if len(names) > 3 else ""
    )


def _state(root: Root, reference: str) -> dict[str, Any]:
    from sundog.storage.models import Registry
    from sundog.storage.programs import state_of

    version = Registry(root).get(reference)
    if version.kind != "torch-export":
        raise RunError(
            f"init_from: {version.ref} is a {version.kind} model, which has no weights to take",
            "name a version that a run registered",
        )
    return state_of(root, version)
