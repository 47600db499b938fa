"""How much of its devices' peak a run's model uses (MFU), where both sides of it are known.

FLOPs of a sample are counted once, on one micro-batch of a model of its own, as the model would run
without `recompute`: what is computed again is no use. A device that is in no table and a recipe that
cannot be counted give no figure, never a guess.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sundog.errors import AlreadyExists, Corrupt, NotFound, SundogError
from sundog.runs.recipe import fetch
from sundog.runs.replica import autocast, first_model, to_device

if TYPE_CHECKING:
    from sundog.spec.run import RunSpec
    from sundog.storage.root import Root

_FORMAT = 1
_MOST_ROWS = 64  # enough to count what one costs

_PEAKS: dict[str, dict[str, float]] = {
    "NVIDIA H200": {"bf16": 989.4, "fp16": 989.4, "fp32": 66.9},
    "NVIDIA H100 80GB HBM3": {"bf16": 989.4, "fp16": 989.4, "fp32": 66.9},
    "NVIDIA H100 PCIe": {"bf16": 756.0, "fp16": 756.0, "fp32": 51.0},
    "NVIDIA A100-SXM4-40GB": {"bf16": 312.0, "fp16": 312.0, "fp32": 19.5},
    "NVIDIA A100-SXM4-80GB": {"bf16": 312.0, "fp16": 312.0, "fp32": 19.5},
    "NVIDIA A100-PCIE-40GB": {"bf16": 312.0, "fp16": 312.0, "fp32": 19.5},
    "NVIDIA A100 80GB PCIe": {"bf16": 312.0, "fp16": 312.0, "fp32": 19.5},
    "NVIDIA L40S": {"bf16": 362.0, "fp16": 362.0, "fp32": 91.6},
    "NVIDIA L4": {"bf16": 121.0, "fp16": 121.0, "fp32": 30.3},
    "Tesla T4": {"fp16": 65.0, "fp32": 8.1},
    "Tesla V100-SXM2-16GB": {"fp16": 125.0, "fp32": 15.7},
    "Tesla V100-SXM2-32GB": {"fp16": 125.0, "fp32": 15.7},
}
"""TFLOPS of one device without sparsity, by torch's name of it, from NVIDIA's data sheets."""


def peak_flops(spec: RunSpec, device: torch.device) -> float | None:
    """What a worker's device can do in a second at the spec's precision; None: nobody said."""
    if spec.peak_tflops is not None:
        return spec.peak_tflops * 1e12
    if device.type != "cuda" or spec.resources.gpus != 1:
        return None
    if spec.precision == "fp32" and torch.get_float32_matmul_precision() != "highest":
        return None  # TensorFloat-32, or something between
    known = _PEAKS.get(torch.cuda.get_device_name(device), {}).get(spec.precision)
    return None if known is None else known * 1e12


def settle_work(
    root: Root, folder: str, spec: RunSpec, recipe: Any, device: torch.device
) -> dict[str, float] | None:
    """`flops` of a sample and `peak_flops` of a worker, for the news of the run in `folder`, which
    keeps what was counted. None where one of them is not known."""
    peak = peak_flops(spec, device)
    if peak is None:
        return None
    key = f"{folder}/flops.json"
    try:
        found = json.loads(root.read(key))["flops"]
    except NotFound:
        found = sample_flops(spec, recipe, device)
        with suppress(AlreadyExists):  # another worker was first
            root.create(key, json.dumps({"format": _FORMAT, "flops": found}).encode())
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{key} cannot be read: {error}", "delete it: it is counted again") from None
    return {"flops": float(found), "peak_flops": peak} if found else None


def sample_flops(spec: RunSpec, recipe: Any, device: torch.device) -> float | None:
    """FLOPs of one sample, forward and backward; None where they cannot be counted."""
    from torch.utils.flop_counter import FlopCounterMode

    micro = spec.micro_batch if isinstance(spec.micro_batch, int) else _MOST_ROWS
    try:
        model = first_model(spec, recipe).to(device)
        train = recipe.dataset("train")
        rows = np.arange(min(micro, _MOST_ROWS, spec.batch)) % len(train)
        batch = to_device(fetch(train, rows), device)
        rng = torch.Generator(device).manual_seed(0)
        with FlopCounterMode(display=False) as counter:
            with autocast(spec, device):
                loss = recipe.loss(model, batch, rng)
            loss.backward()
    except (SundogError, RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        # A faulty recipe is told of where it trains; here it only costs a figure.
        print(f"no MFU: its FLOPs cannot be counted: {type(error).__name__}: {error}", flush=True)
        return None
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return counter.get_total_flops() / len(rows) or None


def mfu(progress: Mapping[str, Any]) -> float | None:
    """The share of the workers' peak that the model's own FLOPs take, from their news."""
    work = progress.get("work")
    if not work:
        return None
    used: float = progress["samples_s"] * work["flops"]
    return used / (progress["world"] * work["peak_flops"])
