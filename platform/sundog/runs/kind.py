"""Which kind of machine computes a run: the same sums have the same bits only on one kind.

An exact run begins on some kind and goes on only there; who does not need that says `exact: false`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from sundog.errors import AlreadyExists, Corrupt, NotFound, RunError

if TYPE_CHECKING:
    from sundog.spec.run import RunSpec
    from sundog.storage.root import Root

_FORMAT = 1


def device_name(device: torch.device) -> str:
    """An accelerator's name as a path may hold it, or `cpu`."""
    if device.type != "cuda":
        return device.type
    return torch.cuda.get_device_name(device).replace(" ", "-").replace("/", "-")


def kind_of(device: torch.device) -> str:
    """What the bits of a sum depend on: accelerator or instruction set, and torch's release."""
    name = device_name(device)
    if device.type == "cpu":
        name += f" with {torch.backends.cpu.get_cpu_capability()}"
    return f"{name}, torch {torch.__version__.partition('+')[0]}"


def settle_kind(root: Root, folder: str, spec: RunSpec, device: torch.device) -> None:
    """Remember on which kind the exact run in `folder` computes. RunError where it is another one."""
    if not spec.exact:
        return
    key, own = f"{folder}/kind.json", kind_of(device)
    began = _read(root, key)
    if began is None:
        try:
            root.create(key, json.dumps({"format": _FORMAT, "kind": own}).encode())
            return
        except AlreadyExists:  # another worker was first
            began = _read(root, key)
    if began != own:
        raise RunError(
            f"exact mode refuses to mix machines: this run computes on {began}, this worker on {own}",
            "ask for one kind (resources: {gpu: …}), or write exact: false: the same run id goes on",
        )


def _read(root: Root, key: str) -> str | None:
    try:
        return str(json.loads(root.read(key))["kind"])
    except NotFound:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{key} cannot be read: {error}", "delete it: it is written again") from None
