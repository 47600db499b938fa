"""Ray's own failure reason says why a launch failed. Private part of Ray: how it prints a launch error.

Ray keeps the provider's exception as the cause and prints only the node type, so `ray status -v`
and the dashboard would say that a launch failed and not why.
"""

from __future__ import annotations


def show_causes() -> bool:
    """Print causes from now on, in this process; False where this Ray has no such error to mend."""
    try:
        from ray.autoscaler.v2.instance_manager.node_provider import LaunchNodeError
    except ImportError:
        return False
    LaunchNodeError.__str__ = _with_cause
    return True


def _with_cause(error: BaseException) -> str:
    said = str(error.args[0]) if error.args else type(error).__name__
    if error.__cause__ is None:
        return said
    return f"{said.rstrip(': ')}: {error.__cause__}"
