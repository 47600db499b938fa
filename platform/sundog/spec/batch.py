"""A batch job: a model over a Parquet data set, answers as Parquet."""

from __future__ import annotations

from pydantic import Field

from sundog.spec.base import Name, Reference
from sundog.spec.environment import Environment
from sundog.spec.quantity import Range
from sundog.spec.run import Resources


class BatchSpec(Environment):
    """`jobs/specs/*.yaml` of `jobs/batch.py`."""

    batch: Name = Field(description="the job's name; its id is this and a number")
    model: Reference = Field(description="name@version or name@alias", examples=["digits@champion"])
    data: str = Field(description="name@version of a dataset, or a Parquet file or folder (URL)")
    split: str | None = Field(None, description="only this split of the dataset")
    inputs: dict[str, str] = Field(
        default_factory=dict, description="model input -> column, where their names differ"
    )
    keep: tuple[str, ...] = Field((), description="columns to carry over into the result")
    output: str | None = Field(None, description="where to write; else runs/<run_id>/output")
    rows: int = Field(256, ge=1, description="rows in one call of the model")
    workers: Range = Range(1, 1)
    resources: Resources = Resources()
    allow_code: bool = Field(False, description="let a python model run its own code")
    root: str | None = None
