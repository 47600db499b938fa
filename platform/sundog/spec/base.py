"""What all specs share: frozen, and an unknown key is an error rather than a silent nothing."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, WithJsonSchema

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
_REFERENCE = re.compile(r"[a-z0-9][a-z0-9._-]*(@[A-Za-z0-9._-]+)?")
_RECIPE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class Spec(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True
    )


def _name(value: str) -> str:
    if not _NAME.fullmatch(value) or "--" in value:
        raise ValueError(
            f"{value!r} is not a name; use lower-case letters, digits, '.', '_' and single '-', "
            "at most 63 of them, starting and ending with a letter or a digit"
        )
    return value


def _reference(value: str) -> str:
    if not _REFERENCE.fullmatch(value):
        raise ValueError(f"{value!r} is not a reference; write name@version or name@latest")
    return value


def _recipe(value: str) -> str:
    if not _RECIPE.fullmatch(value):
        raise ValueError(
            f"{value!r} does not name a recipe; write module:Name, "
            "the module as it is imported from the working directory"
        )
    return value


Name = Annotated[str, AfterValidator(_name)]
"""A name of a run, model, dataset, service or pool. `--` is kept for versions (digits--v3)."""

Reference = Annotated[str, AfterValidator(_reference)]
"""`name@version`, `name@alias` or `name@latest`; a bare name means the latest."""

RecipeName = Annotated[
    str, AfterValidator(_recipe), WithJsonSchema({"type": "string", "pattern": r"^[\w.]+:\w+$"})
]


def split_reference(reference: str, default: str = "latest") -> tuple[str, str]:
    """`'digits@3'` -> `('digits', '3')`; `'digits'` -> `('digits', default)`."""
    name, _, version = reference.partition("@")
    return name, version or default
