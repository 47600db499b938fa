"""Sundog: elastic compute for AI on Ray.

What user code, `jobs/` and `deployments/` may use. Everything is loaded on first use, so that
importing a pure module never pulls Ray or torch in.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> module that defines it
_EXPORTS = {
    "Columns": "sundog.runs.recipe",
    "ElasticSampler": "sundog.runs.parts",
    "GoodputMeter": "sundog.runs.parts",
    "JustInTimeCheckpoint": "sundog.runs.parts",
    "NodeNotice": "sundog.runs.parts",
    "Recipe": "sundog.runs.recipe",
    "Streamed": "sundog.runs.streamed",
    "SundogError": "sundog.errors",
    "TokenWindows": "sundog.runs.streamed",
    "batch": "sundog.runs.jobs",
    "guard": "sundog.runs.jobs",
    "ingest": "sundog.runs.jobs",
    "service": "sundog.control.anchor",
    "sweep": "sundog.runs.jobs",
    "train": "sundog.runs.jobs",
}

__all__ = [
    "Columns",
    "ElasticSampler",
    "GoodputMeter",
    "JustInTimeCheckpoint",
    "NodeNotice",
    "Recipe",
    "Streamed",
    "SundogError",
    "TokenWindows",
    "__version__",
    "batch",
    "guard",
    "ingest",
    "service",
    "sweep",
    "train",
]

if TYPE_CHECKING:
    from sundog.errors import SundogError


def __getattr__(name: str) -> Any:
    try:
        module = _EXPORTS[name]
    except KeyError:
        raise AttributeError(f"module 'sundog' has no attribute {name!r}") from None
    return getattr(importlib.import_module(module), name)
