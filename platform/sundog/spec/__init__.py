"""What the user asks for: frozen pydantic models and their YAML loading. No I/O beyond the file."""

from sundog.spec.batch import BatchSpec
from sundog.spec.load import load, parse
from sundog.spec.run import CheckpointPolicy, RegisterRule, Resources, RunSpec
from sundog.spec.service import ServiceSpec
from sundog.spec.sweep import SweepSpec

__all__ = [
    "BatchSpec",
    "CheckpointPolicy",
    "RegisterRule",
    "Resources",
    "RunSpec",
    "ServiceSpec",
    "SweepSpec",
    "load",
    "parse",
]
