"""Checkpoints of a sharded run: every worker writes its shards, in the background, readable at any size.

Torch's distributed checkpoint lays them out in a scratch folder (the local disk); from there they go
to the storage root, and the manifest with everybody's hashes is the commit. What it reads it has
checked against these hashes: torch's own index of a checkpoint is a pickle.
"""

from __future__ import annotations

import tempfile
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from sundog.errors import RunError, SundogError, first_line
from sundog.runs import ledger
from sundog.runs.checkpoint import Checkpoint
from sundog.runs.replica import other_model
from sundog.runs.saver import Saver, check_finite, segment_name, unpack, unwritten
from sundog.runs.stage import place

if TYPE_CHECKING:
    from sundog.runs.loop import Loop
    from sundog.runs.sharded import Sharded

INDEX = ".metadata"  # torch's name of what says where each tensor lies


class ShardedSaver(Saver):
    """All workers call `offer` at the same step; the first one says when that is (`due`)."""

    _group: Any = None
    _world = 1

    def meet(self, world: int) -> None:
        """A new group: background saves talk over connections of their own."""
        self._thread = None  # what the old group did not finish was never committed
        self._saved_step = -1
        self._world = world
        self._group = dist.new_group(backend="gloo") if world > 1 else None

    def due(self, loop: Loop) -> bool:
        """Whether the first worker wants the others to save after this step."""
        busy = self._thread is not None and self._thread.is_alive()
        now_s = self._clock.monotonic_s()
        step = loop.step + 1 - max(self._saved_step, 0)
        return not busy and self._cadence.due(step, now_s - self._saved_s)

    def offer(self, loop: Loop, now: bool = False) -> None:
        if self._error:
            error, self._error = self._error, None
            raise error
        if not now or loop.step == self._saved_step:
            return
        self._wait()
        began = self._clock.monotonic_s()
        segment, entries = segment_name(loop.entries), loop.entries
        loop.segments, loop.entries = [*loop.segments, *segment], []
        about = {
            "metrics": dict(loop.metrics), "plan": vars(loop.plan), "ledger": list(loop.segments),
            "world": self._world, "layout": "fsdp",
        }  # fmt: skip
        rank = loop.exchange.rank if loop.exchange else 0
        scratch = tempfile.TemporaryDirectory(prefix="sundog-shards-", dir=_disk())
        shards = loop.replica.shards()
        check_finite(loop.step, shards["model"])
        written = self._lay_down(shards, scratch.name)
        self._saved_step, self._saved_s = loop.step, began
        parts = (
            scratch, written, loop.step, rank, about, segment, loop.plan, entries, began,
            self._stalled(began),
        )  # fmt: skip
        self._thread = threading.Thread(target=self._commit, args=parts, daemon=True)
        self._thread.start()

    def _lay_down(self, state: dict[str, Any], folder: str) -> Any:
        """Copy the shards; returns what to wait for until they are in `folder`."""
        writer = dcp.FileSystemWriter(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self._group is None:
                dcp.save(state, storage_writer=writer, no_dist=True)
                return None
            return dcp.async_save(state, storage_writer=writer, process_group=self._group)

    def _commit(
        self, scratch: Any, written: Any, step: int, rank: int, about: dict[str, Any],
        segment: list[str], plan: ledger.Plan, entries: list[ledger.Entry], began: float,
        stall_s: float,
    ) -> None:  # fmt: skip
        try:
            mine = self._put(written, step, scratch.name)
            everybody: list[Any] = [mine]
            if self._group is not None:
                everybody = [None] * self._world
                try:
                    dist.all_gather_object(everybody, mine, group=self._group)
                except RuntimeError:
                    return  # the group fell apart meanwhile: this checkpoint was never committed
            for found in everybody:
                if isinstance(found, SundogError):
                    raise found
            if rank == 0:
                for name in segment:
                    self._root.write(f"{self._folder}/ledger/{name}", ledger.encode(plan, entries))
                merged = {name: file for one in everybody for name, file in one.items()}
                self.checkpoints.commit(step, merged, about)
                size = sum(file["bytes"] for file in merged.values())
                took_s = self._clock.monotonic_s() - began
                told = {"step": step, "bytes": size, "took_s": took_s, "stall_s": stall_s}
                self._note("checkpoint", told)
        except Exception as error:  # noqa: BLE001 - whatever it was, the next offer says it
            self._error = unwritten(step, error)
        finally:
            scratch.cleanup()

    def _put(self, written: Any, step: int, folder: str) -> dict[str, Any] | SundogError:
        """This worker's files by name, or why there are none: the others wait to hear of it."""
        try:
            if written is not None:
                written.result()
            return self.checkpoints.put(step, _parts(folder))
        except (Exception, dcp.CheckpointException) as error:  # noqa: BLE001 - torch's is no Exception
            return unwritten(step, error)

    def load(self, loop: Loop, step: int) -> None:
        """Read this place's shards of checkpoint `step`, whatever the number of workers then."""
        checkpoint = self.checkpoints.read(step)
        self.check_plan(checkpoint.about["plan"], loop)
        if INDEX not in checkpoint.parts:  # the other layout's
            cast("Sharded", loop.replica).load_whole(unpack(checkpoint), step)
        else:
            self._load_shards(loop, checkpoint)
        loop.go_on_from(step, checkpoint.about)
        self._saved_step = step

    def _load_shards(self, loop: Loop, checkpoint: Checkpoint) -> None:
        step, state = checkpoint.step, loop.replica.shards()
        with tempfile.TemporaryDirectory(prefix="sundog-shards-") as folder:
            _lay_out(checkpoint, folder)
            try:
                dcp.load(
                    state, storage_reader=dcp.FileSystemReader(folder), no_dist=self._world == 1
                )
            except (dcp.CheckpointException, ValueError, RuntimeError, KeyError) as error:
                raise other_model(step, RunError(first_line(error))) from None
        loop.replica.load_named(state, step)


def whole_model(checkpoint: Checkpoint) -> dict[str, Any]:
    """The model's full state dict out of a sharded checkpoint, without any process group."""
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with tempfile.TemporaryDirectory(prefix="sundog-shards-") as folder:
        _lay_out(checkpoint, folder)
        whole = Path(folder, "whole.pt")
        dcp_to_torch_save(folder, whole)
        found: dict[str, Any] = torch.load(whole, map_location="cpu", weights_only=True)
    return found


def _disk() -> Path | None:
    """The fastest one of this node; None: that of temporary files."""
    with suppress(OSError):
        return place()
    return None


def _parts(folder: str) -> dict[str, Path]:
    return {path.name: path for path in Path(folder).iterdir() if path.is_file()}


def _lay_out(checkpoint: Checkpoint, folder: str) -> None:
    for name, data in checkpoint.parts.items():
        Path(folder, Path(name).name).write_bytes(data)
