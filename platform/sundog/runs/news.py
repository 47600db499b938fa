"""What can be read off the news that a run's first worker posts. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def eta_s(progress: Mapping[str, Any]) -> float | None:
    """Seconds until the last step at the present speed; None before there is one."""
    step, rate = progress["step"], progress["samples_s"]
    if not step or not rate or not progress.get("epoch"):
        return None
    batch = progress.get("batch") or 0
    return (progress["steps"] - step) * batch / rate if batch else None


def nodes_of(news: Mapping[str, Any]) -> set[str]:
    """The nodes that a run's workers are on, from their news or from its record."""
    return {worker["node_id"] for worker in news.get("placed") or []}
