"""What a model takes and gives: names, datatypes and shapes, as the Open Inference Protocol says.

Values only; checking a request against a signature is serving's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sundog.errors import Corrupt

ANY = -1
"""A dimension of any size, usually the batch."""

# Open Inference Protocol datatype -> NumPy's name. BF16 has no NumPy type; BYTES holds strings.
DATATYPES: Mapping[str, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
}
_BY_NUMPY = {numpy: datatype for datatype, numpy in DATATYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor. `shape` has -1 for any size; `datatype` is a key of `DATATYPES` (or BF16)."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name!r} {self.datatype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Signature:
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def document(self) -> dict[str, Any]:
        return {"inputs": _listed(self.inputs), "outputs": _listed(self.outputs)}

    def same_names(self, other: Signature) -> bool:
        return [{t.name for t in self.inputs}, {t.name for t in self.outputs}] == [
            {t.name for t in other.inputs},
            {t.name for t in other.outputs},
        ]

    def difference(self, other: Signature) -> str:
        """What changes from `other` to this one, as a sentence; empty if nothing does."""
        for verb, mine, theirs in (
            ("takes", self.inputs, other.inputs),
            ("gives", self.outputs, other.outputs),
        ):
            if set(mine) != set(theirs):
                new = ", ".join(str(t) for t in mine if t not in theirs) or "nothing new"
                old = ", ".join(str(t) for t in theirs if t not in mine) or "less"
                return f"{verb} {new}, not {old}"
        return ""


def datatype_of(numpy_name: str) -> str:
    """`'float32'` -> `'FP32'`."""
    if numpy_name == "bfloat16":
        return "BF16"
    try:
        return _BY_NUMPY[numpy_name]
    except KeyError:
        raise ValueError(f"{numpy_name} has no datatype in the Open Inference Protocol") from None


def signature_of(document: Mapping[str, Any], key: str) -> Signature:
    """Read back what `Signature.document` wrote. Corrupt."""
    try:
        return Signature(_specs(document["inputs"]), _specs(document["outputs"]))
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"{key} holds no signature: {error!r}") from error


def _listed(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    return [{"name": s.name, "datatype": s.datatype, "shape": list(s.shape)} for s in specs]


def _specs(items: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(str(i["name"]), str(i["datatype"]), tuple(int(n) for n in i["shape"]))
        for i in items
    )
