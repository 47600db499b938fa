"""The registry: immutable, numbered model versions, and aliases that move by compare-and-swap.

Layout: `models/<name>/<version>/model.json` (its creation is the commit), files under
`models/<name>/files/<fresh id>/`, `models/<name>/aliases.json`. Refuses to run a model.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sundog.clock import WALL, Clock
from sundog.errors import Conflict, NotFound, SundogError
from sundog.storage import aliases as pointers
from sundog.storage import holds as held
from sundog.storage.datasets import digest
from sundog.storage.documents import require_name
from sundog.storage.numbers import commit_next, near, parse_version, taken
from sundog.storage.root import Root, checked, file_digest
from sundog.storage.signature import Signature, TensorSpec
from sundog.storage.versions import (
    FOLDER,
    KINDS,
    Kind,
    ModelVersion,
    decoded,
    encoded,
    place_of_files,
    tombstone,
)

__all__ = ["ModelVersion", "Registry", "Signature", "TensorSpec"]


class Registry:
    """The models of one storage root. Holds no state; every call reads or moves the root's."""

    def __init__(self, root: Root, *, clock: Clock = WALL) -> None:
        self.root = root
        self._clock = clock

    # -- writing ---------------------------------------------------------------------------

    def register(
        self,
        name: str,
        files: Mapping[str, Path],
        *,
        kind: Kind,
        signature: Signature,
        metrics: Mapping[str, float],
        lineage: Mapping[str, Any],
        alias: str | None = None,
        new_signature: bool = False,
        entry: str | None = None,
    ) -> ModelVersion:
        """Upload the files, then take the next number by creating its `model.json`.

        `files` maps a path inside the version to a local file. Conflict if the signature differs
        from that of a version which an alias points at and `new_signature` is not given.
        """
        require_name(name, "model")
        if alias is not None:
            pointers.require_alias(alias)
        if kind not in KINDS or not files:
            raise SundogError(f"a model version is {' or '.join(KINDS)} and has files")
        if not new_signature:
            self._require_same_signature(name, signature)
        files_at = place_of_files(name, uuid.uuid4().hex)
        version = ModelVersion(
            name=name,
            version=0,
            kind=kind,
            signature=signature,
            metrics=dict(metrics),
            lineage=dict(lineage),
            files={path: file_digest(local) for path, local in sorted(files.items())},
            created_s=self._clock.now_s(),
            files_at=files_at,
            entry=entry,
            sizes={path: local.stat().st_size for path, local in sorted(files.items())},
        )
        for path, local in files.items():
            self.root.upload(local, checked(version.key(path)))
        version = self._commit(version)
        if alias is not None:
            self.set_alias(name, alias, version.version)
        return version

    def import_export(
        self,
        name: str,
        path: Path,
        signature: Signature | None = None,
        *,
        metrics: Mapping[str, float] | None = None,
        lineage: Mapping[str, Any] | None = None,
        alias: str | None = None,
        new_signature: bool = False,
    ) -> ModelVersion:
        """Register a `.pt2` program that was exported elsewhere. Unsafe if it holds code.

        Without a `signature` the program's own is taken; one that is given must name the same
        inputs and outputs.
        """
        from sundog.storage.programs import PROGRAM, load_program, signature_of_program

        own = signature_of_program(load_program(_require_file(path)))
        if signature and not signature.same_names(own):
            raise SundogError(
                f"{path.name} {own.difference(signature)}", fix="correct or leave out the signature"
            )
        return self.register(
            name,
            {PROGRAM: path},
            kind="torch-export",
            signature=signature or own,
            metrics=metrics or {},
            lineage=lineage or {"imported": path.name},
            alias=alias,
            new_signature=new_signature,
        )

    def import_python(
        self,
        name: str,
        folder: Path,
        entry: str,
        signature: Signature,
        *,
        metrics: Mapping[str, float] | None = None,
        lineage: Mapping[str, Any] | None = None,
        alias: str | None = None,
        new_signature: bool = False,
    ) -> ModelVersion:
        """Register a folder of source and data as a python model; `entry` is `module:Class`.

        Every file goes in, hashed; none of it runs here.
        """
        module, _, cls = entry.partition(":")
        source = folder / f"{module.replace('.', '/')}.py"
        if not cls or not source.is_file():
            raise SundogError(
                f"{entry!r} is not in {folder}: no {source.name} there",
                fix="write module:Class, the module as a file of that folder",
            )
        return self.register(
            name,
            {path.relative_to(folder).as_posix(): path for path in _source_files(folder)},
            kind="python",
            signature=signature,
            metrics=metrics or {},
            lineage=lineage or {"imported": folder.name},
            alias=alias,
            new_signature=new_signature,
            entry=entry,
        )

    def set_alias(
        self,
        name: str,
        alias: str,
        version: int,
        expect: pointers.Expected = "any",
    ) -> None:
        """Point an alias at a version, if it points at `expect` now (None: nowhere). Conflict."""
        pointers.require_alias(alias)
        self._read(name, version)
        before = pointers.move(self.root, name, alias, version, expect)
        # A delete marks the version first and reads the aliases after; we do it the other way
        # round. So one of the two sees the other, and no alias is left on a deleted version.
        if held.read(self.root, _holds_key(name, version)).deleting:
            pointers.move(self.root, name, alias, before, version)
            raise self._gone(name, version)

    def remove_alias(self, name: str, alias: str) -> None:
        """Idempotent."""
        pointers.move(self.root, name, alias, None, "any")

    def hold(self, name: str, version: int, holder: str) -> None:
        """Keep a version from being deleted. Idempotent. NotFound if it is (being) deleted."""
        self._read(name, version)

        def add(now: held.Holds) -> held.Holds:
            if now.deleting:
                raise self._gone(name, version)
            return dataclasses.replace(now, holders=tuple(sorted({*now.holders, holder})))

        held.change(self.root, _holds_key(name, version), add)

    def release(self, name: str, version: int, holder: str) -> None:
        """Idempotent."""

        def remove(now: held.Holds) -> held.Holds:
            return dataclasses.replace(now, holders=tuple(h for h in now.holders if h != holder))

        held.change(self.root, _holds_key(name, version), remove)

    def delete(self, reference: str, force: bool = False) -> None:
        """Delete a version; its number stays taken. Conflict while held or an alias points at it.

        `force` takes the aliases away and disregards holders.
        """
        version = self.get(reference)
        name, n = version.name, version.version

        def mark(now: held.Holds) -> held.Holds:
            if now.holders and not force:
                raise Conflict(
                    f"{version.ref} was not deleted: {', '.join(now.holders)} needs it",
                    fix="undeploy it (`sundog undeploy`) or move it to another version first; where "
                    "its cluster is gone for good, nothing holds it any more: pass --force",
                )
            return dataclasses.replace(now, deleting=True)

        held.change(self.root, _holds_key(name, n), mark)
        aliases = [a for a, points_at in self.aliases(name).items() if points_at == n]
        if aliases and not force:
            held.change(
                self.root,
                _holds_key(name, n),
                lambda now: dataclasses.replace(now, deleting=False),
            )
            raise Conflict(
                f"{version.ref} was not deleted: it is {', '.join(aliases)}",
                fix=f"move the alias first: sundog models alias {name} {aliases[0]} VERSION",
            )
        for alias in aliases:
            self.remove_alias(name, alias)
        self.root.write(
            _key(name, n),
            tombstone(name, n, self._clock.now_s()),
        )
        self.root.delete_prefix(version.files_at)

    # -- reading ---------------------------------------------------------------------------

    def get(self, reference: str, default: str = "latest") -> ModelVersion:
        """`digits@3`, `digits@champion`, `digits@latest`; a bare name means `default`. NotFound."""
        name, version, word = parse_version(reference, "model")
        word = word or default
        if version is None and word.isdigit():
            version = int(word)
        if version is not None:
            return self._read(name, version)
        if word == "latest":
            return self._latest(name)
        aliases = self.aliases(name)
        if word in aliases:
            return self._read(name, aliases[word])
        if not taken(self.root, f"{FOLDER}/{name}"):
            raise near(self.root, "model", FOLDER, name)
        known = ", ".join(f"{name}@{a}" for a in sorted(aliases))
        raise NotFound(
            f"{name} has no alias {word!r}",
            fix=f"there is {known}" if known else f"write {name}@latest, or set the alias first",
        )

    def models(self) -> list[str]:
        """Names with at least one version that was not deleted, sorted."""
        return [name for name in self.root.children(FOLDER) if self._has_version(name)]

    def versions(self, name: str) -> list[ModelVersion]:
        """All versions that were not deleted, ascending. NotFound if there never was one."""
        require_name(name, "model")
        numbers = taken(self.root, f"{FOLDER}/{name}")
        if not numbers:
            raise near(self.root, "model", FOLDER, name)
        keys = [_key(name, n) for n in numbers]
        found = map(decoded, keys, self.root.read_many(keys))
        return [version for version in found if version]

    def aliases(self, name: str) -> dict[str, int]:
        return pointers.read(self.root, require_name(name, "model"))

    def holds(self, name: str, version: int) -> list[str]:
        """Who keeps this version from being deleted."""
        return list(held.read(self.root, _holds_key(name, version)).holders)

    def verify(self, reference: str) -> list[str]:
        """Faults of the stored files against their hashes; empty if there are none."""
        version = self.get(reference)
        faults = []
        for path, expected in version.files.items():
            try:
                found = digest(self.root, version.key(path))
            except NotFound:
                faults.append(f"{path}: missing")
                continue
            if found != expected:
                faults.append(f"{path}: sha256 is {found[:12]}…, registered was {expected[:12]}…")
        return faults

    # -- inside ----------------------------------------------------------------------------

    def _commit(self, version: ModelVersion) -> ModelVersion:
        for path in version.files:
            # An upload slower than the collector's patience must not become a version.
            if not self.root.exists(version.key(path)):
                raise NotFound(
                    f"{path} of {version.name} was removed before it was registered",
                    fix="register again, and collect only what is older than your slowest upload",
                )
        n = commit_next(
            self.root,
            f"{FOLDER}/{version.name}",
            "model.json",
            lambda n: encoded(dataclasses.replace(version, version=n)),
        )
        return dataclasses.replace(version, version=n)

    def _require_same_signature(self, name: str, signature: Signature) -> None:
        for alias, n in self.aliases(name).items():
            current = self._find(name, n)
            difference = signature.difference(current.signature) if current else ""
            if difference:
                verb, _, rest = difference.partition(" ")
                new, _, old = rest.partition(", not ")
                raise Conflict(
                    f"{name} was not registered: its signature {verb} {new}, {name}@{n} {verb} "
                    f"{old}: services that follow {name}@{alias} would break",
                    fix="register under a new name, or pass --new-signature",
                )

    def _find(self, name: str, n: int) -> ModelVersion | None:
        key = _key(name, n)
        try:
            return decoded(key, self.root.read(key))
        except NotFound:
            return None

    def _read(self, name: str, n: int) -> ModelVersion:
        version = self._find(name, n)
        if version is None:
            raise self._gone(name, n)
        return version

    def _gone(self, name: str, n: int) -> NotFound:
        numbers = taken(self.root, f"{FOLDER}/{name}")
        if not numbers:
            return near(self.root, "model", FOLDER, name)
        what = "was deleted" if n in numbers else f"is not in {self.root.url}"
        there = [v.ref for v in self.versions(name) if v.version != n]
        return NotFound(
            f"{name}@{n} {what}",
            fix=f"there is {', '.join(there[-5:])}" if there else "register it again",
        )

    def _latest(self, name: str) -> ModelVersion:
        numbers = taken(self.root, f"{FOLDER}/{name}")
        for n in reversed(numbers):
            version = self._find(name, n)
            if version:
                return version
        if numbers:
            raise NotFound(f"all versions of {name} were deleted", fix="register it again")
        raise near(self.root, "model", FOLDER, name)

    def _has_version(self, name: str) -> bool:
        return any(self._find(name, n) for n in reversed(taken(self.root, f"{FOLDER}/{name}")))


def _key(name: str, n: int) -> str:
    return f"{FOLDER}/{require_name(name, 'model')}/{n}/model.json"


def _holds_key(name: str, n: int) -> str:
    return f"{FOLDER}/{require_name(name, 'model')}/{n}/holds.json"


def _require_file(path: Path) -> Path:
    if not path.is_file():
        raise NotFound(f"no file {path}", fix="give the path of a .pt2 file")
    return path


def _source_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
