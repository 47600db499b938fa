"""What the processes of a run, a batch job or a service find around them: variables and packages."""

from __future__ import annotations

from pydantic import Field, field_validator

from sundog.spec.base import Spec


class Environment(Spec):
    """Fields that every spec has whose code runs on the cluster's nodes."""

    env: dict[str, str] = Field(default_factory=dict, description="environment variables")
    secrets: dict[str, str] = Field(
        default_factory=dict, description="environment variable -> reference (env:NAME, file:PATH)"
    )
    requirements: tuple[str, ...] = Field(
        (), description="packages that pip installs for its processes", examples=[["einops==0.8.1"]]
    )

    @field_validator("secrets")
    @classmethod
    def _references_only(cls, value: dict[str, str]) -> dict[str, str]:
        for name, reference in value.items():
            if not reference.startswith(("env:", "file:")):
                # Never echo the value: it may be the secret itself.
                raise ValueError(
                    f"{name}: a secret is a reference, env:NAME or file:PATH, never a value"
                )
        return value
