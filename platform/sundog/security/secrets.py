"""The environment that a spec asks for: plain variables, and secrets looked up where they are needed.

A spec holds references only, so no value is ever stored or sent with it.
"""

from __future__ import annotations

import os
from pathlib import Path

from sundog.errors import SpecError
from sundog.spec.environment import Environment


def secret_environment(spec: Environment) -> dict[str, str]:
    """`env` and the values that `secrets` refer to; never printed, never in the record. SpecError."""
    out = dict(spec.env)
    for name, reference in spec.secrets.items():
        kind, _, where = reference.partition(":")
        try:
            out[name] = os.environ[where] if kind == "env" else Path(where).read_text().strip()
        except (KeyError, OSError):
            raise SpecError(
                f"secrets.{name}: {reference} is not there",
                "set it where it is read: the driver's node for a run, each node for a service",
            ) from None
    return out
