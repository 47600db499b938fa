"""Ray's own failure reason says why a launch failed. Private parts of Ray: two places that drop it.

Ray keeps the provider's exception as a cause and prints only the node type; then it forgets the
details of a status change. So `ray status -v` and the dashboard would say that a launch failed, and
not why.
"""

from __future__ import annotations

import functools
from typing import Any


def show_causes() -> bool:
    """Keep and print causes from now on, in this process; False where this Ray has no such places."""
    try:
        from ray.autoscaler.v2.instance_manager.instance_manager import InstanceManager
        from ray.autoscaler.v2.instance_manager.node_provider import LaunchNodeError

        before = InstanceManager._apply_update
    except (ImportError, AttributeError):
        return False
    LaunchNodeError.__str__ = _with_cause
    if not getattr(before, "keeps_details", False):
        InstanceManager._apply_update = staticmethod(_keeping(before))
    return True


def _with_cause(error: BaseException) -> str:
    said = str(error.args[0]) if error.args else type(error).__name__
    if error.__cause__ is None:
        return said
    return f"{said.rstrip(': ')}: {error.__cause__}"


def _keeping(before: Any) -> Any:
    @functools.wraps(before)
    def apply(instance: Any, update: Any) -> None:
        before(instance, update)
        if update.details and instance.status_history:
            instance.status_history[-1].details = update.details

    apply.keeps_details = True  # type: ignore[attr-defined]
    return apply
