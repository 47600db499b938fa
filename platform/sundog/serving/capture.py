"""Sampled requests and answers, kept as Parquet below the storage root for those who look for drift.

Off unless a service asks for it. Never slows an answer: a sample is copied into a bounded buffer after it,
written by a thread, and dropped and counted where either is behind.
"""

from __future__ import annotations

import asyncio
import importlib
import io
import logging
import random
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sundog.clock import WALL
from sundog.errors import SpecError, StorageUnavailable, SundogError
from sundog.serving.tensors import BadTensor, to_numpy
from sundog.storage.root import Root, open_root

FOLDER = "captures"
FORMAT = 1
FLUSH_S = 5.0
MAX_BUFFERED = 32 * 2**20
"""Bytes that wait to be written; what comes then is dropped."""
MAX_SAMPLE = 4 * 2**20

log = logging.getLogger("sundog.gateway")

Tensors = Sequence[tuple[str, str, Sequence[int], bytes | memoryview]]
"""(name, datatype, shape, raw bytes)"""
Row = dict[str, Any]
Hook = Callable[[Row], Row | None]
"""Takes a row {at_s, id, service, version, key, inputs: {name: array}, outputs: {…}}, gives what may be
kept of it, or None for nothing."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a service wants kept. `leave_out`: names of tensors whose values are not."""

    share: float
    leave_out: frozenset[str] = frozenset()
    root: str | None = None


def rule_of(document: Mapping[str, Any] | None) -> Rule | None:
    if not document or not document["share"]:
        return None
    return Rule(document["share"], frozenset(document["leave_out"]), document.get("root"))


@dataclass(frozen=True, slots=True)
class Sample:
    rule: Rule
    at_s: float
    id: str
    service: str
    version: str
    key: str
    inputs: Tensors
    outputs: Tensors
    size: int


def hook_of(text: str) -> Hook | None:
    """`SUNDOG_CAPTURE_HOOK=module:function`, the operator's own. Raises SpecError."""
    if not text:
        return None
    module, _, name = text.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SpecError(
            f"SUNDOG_CAPTURE_HOOK={text!r} cannot be loaded: {error}",
            "name a function that Python finds on the gateway's node: package.module:function",
        ) from None
    if not callable(found):
        raise SpecError(f"SUNDOG_CAPTURE_HOOK={text!r} is not a function", "module:function")
    return found  # type: ignore[no-any-return]


class Capturer:
    """One a gateway. `counts`: (service, kept | dropped) -> how many."""

    def __init__(
        self,
        hook: Hook | None = None,
        open_root: Callable[[str | None], Root] = open_root,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._hook = hook
        self._open_root = open_root
        self._chance = chance
        self._roots: dict[str | None, Root] = {}
        self._waiting: list[Sample] = []
        self._size = 0
        self.counts: dict[tuple[str, str], int] = {}

    def chosen(self, rule: Rule) -> bool:
        """Whether the next request is one of the sample."""
        return self._chance() < rule.share

    def offer(
        self, rule: Rule, about: tuple[str, str, str, str], inputs: Tensors, outputs: Tensors
    ) -> None:
        """Keep this one, where there is room. `about`: request id, service, version, key id."""
        size = sum(len(t[3]) for t in (*inputs, *outputs))
        if size > MAX_SAMPLE or self._size + size > MAX_BUFFERED:
            self._count(about[1], "dropped")
            return
        request_id, service, version, key = about
        self._waiting.append(
            Sample(
                rule, WALL.now_s(), request_id, service, version, key,
                _copied(inputs, rule), _copied(outputs, rule), size,
            )
        )  # fmt: skip
        self._size += size

    def _count(self, service: str, what: str, number: int = 1) -> None:
        self.counts[service, what] = self.counts.get((service, what), 0) + number

    async def flush_forever(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            await self.flush()

    async def flush(self) -> None:
        """Write what waits. What cannot be written is dropped: memory is bounded, requests go on."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        for (service, version), samples in _grouped(waiting):
            kept = 0
            try:
                kept = await asyncio.to_thread(self._write, service, version, samples)
            except SundogError as error:
                log.warning("captures of %s are dropped: %s", service, error)
            except Exception:
                log.exception("captures of %s are dropped", service)
            finally:
                self._size -= sum(s.size for s in samples)
            self._count(service, "kept", kept)
            if kept < len(samples):
                self._count(service, "dropped", len(samples) - kept)

    def _write(self, service: str, version: str, samples: list[Sample]) -> int:
        rows = [row for row in map(self._row, samples) if row is not None]
        if not rows:
            return 0
        root, kept = self._root(samples[0].rule.root), 0
        for number, (name, data) in _files(rows):
            root.write(f"{FOLDER}/{service}/{version}/{name}", data)
            kept += number
        return kept

    def _root(self, url: str | None) -> Root:
        if url not in self._roots:
            self._roots[url] = self._open_root(url)
        return self._roots[url]

    def _row(self, sample: Sample) -> Row | None:
        try:
            row: Row | None = {
                "at_s": sample.at_s, "id": sample.id, "service": sample.service,
                "version": sample.version, "key": sample.key,
                "inputs": _arrays(sample.inputs), "outputs": _arrays(sample.outputs),
            }  # fmt: skip
            return self._hook(row) if self._hook is not None and row is not None else row
        except BadTensor:
            return None
        except Exception:
            # The hook is somebody's own. What it could not clean is not kept.
            log.exception("the capture hook failed; its row is dropped")
            return None

    def text(self) -> list[str]:
        """Prometheus lines."""
        from sundog import telemetry

        name = telemetry.GATEWAY_CAPTURES
        return [f"# TYPE {name} counter"] + [
            f'{name}{{service="{service}",outcome="{what}"}} {n}'
            for (service, what), n in sorted(self.counts.items())
        ]


def _copied(tensors: Tensors, rule: Rule) -> Tensors:
    # The buffers are views of what a connection received: they must not be kept alive or change.
    return [
        (name, datatype, list(shape), bytes(raw))
        for name, datatype, shape, raw in tensors
        if name not in rule.leave_out
    ]


def _arrays(tensors: Tensors) -> dict[str, np.ndarray[Any, Any]]:
    return {
        name: to_numpy(memoryview(raw), datatype, list(shape))
        for name, datatype, shape, raw in tensors
    }


def _grouped(samples: list[Sample]) -> Iterator[tuple[tuple[str, str], list[Sample]]]:
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.service, sample.version), []).append(sample)
    yield from groups.items()


def parquet(rows: Sequence[Row]) -> bytes:
    """One row a request: at_s, id, version, key, and for each tensor its values (flat) and its shape."""
    columns: dict[str, pa.Array] = {
        name: pa.array([row.get(name) for row in rows]) for name in ("at_s", "id", "version", "key")
    }
    for side in ("inputs", "outputs"):
        names = dict.fromkeys(n for row in rows for n in row.get(side, {}))
        for name in names:
            arrays = [row.get(side, {}).get(name) for row in rows]
            label = f"{side[:-1]}.{name}"
            columns[label] = _lists(arrays)
            shapes = [None if a is None else list(np.shape(a)) for a in arrays]
            columns[f"{label}.shape"] = pa.array(shapes, pa.list_(pa.int64()))
    table = pa.table(columns).replace_schema_metadata({"sundog.format": str(FORMAT)})
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def _lists(arrays: Sequence[Any]) -> pa.Array:
    """Arrays of any shape as lists of their values, without a Python object for each number."""
    flat = [None if a is None else np.asarray(a).reshape(-1) for a in arrays]
    whole = np.concatenate([f for f in flat if f is not None])
    if whole.dtype == object:
        values = pa.array([v if isinstance(v, bytes) else str(v).encode() for v in whole])
    elif whole.dtype == np.float16:
        values = pa.array(whole.astype(np.float32))
    else:
        values = pa.array(whole)
    offsets: list[int | None] = []
    at = 0
    for each in flat:
        offsets.append(None if each is None else at)
        at += 0 if each is None else len(each)
    return pa.ListArray.from_arrays(pa.array([*offsets, at], pa.int32()), values)


def _files(rows: list[Row]) -> Iterator[tuple[int, tuple[str, bytes]]]:
    """(rows, (name, data)) of each file: one, but where the operator's hook made rows that do not go
    together, as few as there have to be, without those that are no rows."""
    try:
        at_s = rows[0]["at_s"]
        day = datetime.fromtimestamp(at_s, UTC).date().isoformat()
        made = f"{day}/{int(at_s * 1000)}-{secrets.token_hex(4)}.parquet", parquet(rows)
    except Exception as error:  # noqa: BLE001 - whatever a hook may return
        if len(rows) == 1:
            log.warning("a captured row cannot be written and is dropped: %r", error)
            return
        middle = len(rows) // 2
        yield from _files(rows[:middle])
        yield from _files(rows[middle:])
    else:
        yield len(rows), made


def read(root: Root, service: str, limit: int = 100, since_s: float = 0.0) -> list[Row]:
    """The newest captured rows of a service, newest first, as plain data; tensors as numpy arrays.

    Raises StorageUnavailable.
    """
    rows: list[Row] = []
    entries = sorted(root.entries(f"{FOLDER}/{service}"), key=lambda e: -e.modified_s)
    for entry in entries:
        if len(rows) >= limit or entry.modified_s < since_s:
            break
        if entry.key.endswith(".parquet"):
            # In this thread: one of Arrow's that lets go of a Python object while Python ends aborts.
            source = pa.BufferReader(root.read(entry.key))
            table = pq.ParquetFile(source).read(use_threads=False)
            _check_format(table, entry.key)
            rows += [r for r in _rows(table, service) if r["at_s"] >= since_s]
    return sorted(rows, key=lambda r: -r["at_s"])[:limit]


def _check_format(table: pa.Table, key: str) -> None:
    given = int((table.schema.metadata or {}).get(b"sundog.format", b"0"))
    if not 1 <= given <= FORMAT:
        raise StorageUnavailable(
            f"{key} has format {given}", "read it with the Sundog that wrote it"
        )


def _rows(table: pa.Table, service: str) -> Iterator[Row]:
    for flat in table.to_pylist():
        row: Row = {"service": service, "inputs": {}, "outputs": {}}
        for name, value in flat.items():
            side, dot, tensor = name.partition(".")
            if not dot:
                row[name] = value
            elif not tensor.endswith(".shape") and value is not None:
                row[f"{side}s"][tensor] = np.array(value, dtype=None).reshape(flat[f"{name}.shape"])
        yield row
