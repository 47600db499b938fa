"""A model version as a value, and as the document `model.json`.

Knows nothing of where it is stored or who may read it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from sundog.errors import Corrupt
from sundog.storage.documents import Document, Migrations, decode, encode, number
from sundog.storage.signature import Signature, signature_of

FOLDER = "models"
Kind = Literal["torch-export", "python"]
KINDS = ("torch-export", "python")
_MIGRATIONS: Migrations = {}


@dataclass(frozen=True)
class ModelVersion:
    """One registered version. `files` maps a path inside the version to its SHA-256."""

    name: str
    version: int
    kind: Kind
    signature: Signature
    metrics: dict[str, float]
    lineage: dict[str, Any]
    files: dict[str, str]
    created_s: float
    files_at: str
    entry: str | None = None
    """`module:Class` of a python model; its module is one of `files`."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of each file."""

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"

    def key(self, path: str) -> str:
        """The storage key of one of `files`."""
        return f"{self.files_at}/{path}"


def place_of_files(name: str, fresh_id: str) -> str:
    return f"{FOLDER}/{name}/files/{fresh_id}"


def encoded(version: ModelVersion) -> bytes:
    """`model.json`."""
    document = {f.name: getattr(version, f.name) for f in dataclasses.fields(version)}
    return encode({**document, "signature": version.signature.document()})


def tombstone(name: str, n: int, deleted_s: float) -> bytes:
    """What is left of `model.json` after a delete: its number stays taken."""
    return encode({"name": name, "version": n, "deleted_s": deleted_s})


def decoded(key: str, data: bytes | None) -> ModelVersion | None:
    """None if it was never there or was deleted. Corrupt, FormatTooNew."""
    document = decode(data, key, migrations=_MIGRATIONS) if data is not None else None
    return _version(document, key) if document and "deleted_s" not in document else None


def _version(document: Document, key: str) -> ModelVersion:
    try:
        version = ModelVersion(
            name=document["name"],
            version=int(document["version"]),
            kind=document["kind"],
            signature=signature_of(document["signature"], key),
            metrics={m: number(v) for m, v in document["metrics"].items()},
            lineage=document["lineage"],
            files=document["files"],
            created_s=float(document["created_s"]),
            files_at=document["files_at"],
            entry=document.get("entry"),
            sizes=document.get("sizes", {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(
            f"{key} is not a model version: {error!r}",
            fix="restore it from a copy, or register the model again",
        ) from error
    # A delete removes everything below this, so it must be the version's own.
    if not version.files_at.startswith(place_of_files(version.name, "x")[:-1]):
        raise Corrupt(
            f"{key} names files outside its model: {version.files_at}",
            fix="do not trust it: register the model again",
        )
    return version
