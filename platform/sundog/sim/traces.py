"""Request traces: recorded files in two documented formats, and variants of them.

A trace is arrivals and service times. It knows nothing of replicas or of who decides how many.

Formats, told apart by content:

- *Azure LLM inference* (Azure/AzurePublicDataset, 2023 and 2024): CSV with the header
  `TIMESTAMP,ContextTokens,GeneratedTokens`, one request a line. Service time is
  `context / PREFILL_TOKENS_S + generated * DECODE_S_TOKEN`.
- *Requests a second*: one integer a line. Arrivals are spread evenly at random within their
  second; service times are exponential with mean `RATE_SERVICE_S`. The file starts on a full hour.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sundog.errors import NotFound, SpecError

PREFILL_TOKENS_S = 20_000.0
DECODE_S_TOKEN = 0.01
RATE_SERVICE_S = 0.2
_AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trace:
    """`arrival_s` ascending from 0, `service_s` of the same length, both float64 of shape [n]."""

    name: str
    arrival_s: Floats
    service_s: Floats
    duration_s: float

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def mean_service_s(self) -> float:
        return float(self.service_s.mean()) if len(self) else 0.0


def load_trace(path: Path, seed: int = 0) -> Trace:
    """Reads either format. NotFound when the file is missing, SpecError naming the bad line."""
    if not path.is_file():
        raise NotFound(f"no trace at {path}", fix="give the path of a request trace with --trace")
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    if not lines:
        raise SpecError(f"{path}: the trace is empty", fix="one request, or one second, a line")
    if lines[0].split(",")[0].strip() == _AZURE_COLUMNS[0]:
        return _azure(path, lines)
    return _requests_a_second(path, lines, seed)


def _azure(path: Path, lines: list[str]) -> Trace:
    reader = csv.DictReader(lines, skipinitialspace=True)
    missing = [name for name in _AZURE_COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise SpecError(f"{path}:1: no column {missing[0]}", fix=f"expected {_AZURE_COLUMNS}")
    stamps, service = [], []
    for number, row in enumerate(reader, start=2):
        try:
            # Seven decimals in the recordings; Python reads six.
            stamps.append(datetime.fromisoformat(row["TIMESTAMP"].strip()[:26]).timestamp())
            context, generated = int(row["ContextTokens"]), int(row["GeneratedTokens"])
        except (ValueError, TypeError) as fault:
            raise SpecError(f"{path}:{number}: {fault}", fix=f"expected {_AZURE_COLUMNS}") from None
        service.append(context / PREFILL_TOKENS_S + generated * DECODE_S_TOKEN)
    arrival_s = np.asarray(stamps) - min(stamps, default=0.0)
    order = np.argsort(arrival_s, kind="stable")
    arrival_s, service_s = arrival_s[order], np.asarray(service)[order]
    return Trace(path.stem, arrival_s, service_s, float(np.ceil(arrival_s[-1] + 1e-9)))


def _requests_a_second(path: Path, lines: list[str], seed: int) -> Trace:
    counts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            counts.append(int(float(line)))
        except ValueError:
            raise SpecError(
                f"{path}:{number}: {line.strip()!r} is not a number of requests",
                fix="one integer a line, or CSV with the header " + ",".join(_AZURE_COLUMNS),
            ) from None
        if counts[-1] < 0:
            raise SpecError(f"{path}:{number}: {counts[-1]} requests", fix="0 or more a second")
    return from_rates(path.stem, np.asarray(counts), seed=seed)


def from_rates(
    name: str,
    per_second: NDArray[np.int64],
    *,
    mean_service_s: float = RATE_SERVICE_S,
    seed: int = 0,
) -> Trace:
    """A trace of `per_second[i]` requests in second i, with exponential service times."""
    rng = np.random.default_rng(seed)
    counts = np.asarray(per_second, dtype=np.int64)
    seconds = np.repeat(np.arange(len(counts), dtype=np.float64), counts)
    arrival_s = np.sort(seconds + rng.random(len(seconds)))
    service_s = rng.exponential(mean_service_s, len(seconds))
    return Trace(name, arrival_s, service_s, float(len(counts)))


def jittered(trace: Trace, seed: int = 1) -> Trace:
    """The same hour, told a little differently: time runs up to a tenth faster or slower in
    stretches of a minute, single arrivals move by up to 2 s, service times are drawn again.
    """
    rng = np.random.default_rng(seed)
    knots = np.arange(0.0, trace.duration_s + 60.0, 60.0)
    paces = rng.uniform(0.9, 1.1, len(knots) - 1)
    warped = np.concatenate([[0.0], np.cumsum(paces * np.diff(knots))])
    warped *= trace.duration_s / np.interp(trace.duration_s, knots, warped)
    arrival_s = np.interp(trace.arrival_s, knots, warped)
    arrival_s = np.clip(
        arrival_s + rng.uniform(-2.0, 2.0, len(trace)), 0.0, trace.duration_s - 1e-6
    )
    order = np.argsort(arrival_s, kind="stable")
    service_s = rng.permutation(trace.service_s)
    return replace(
        trace, name=f"{trace.name}~jittered", arrival_s=arrival_s[order], service_s=service_s
    )


def scaled(trace: Trace, times: int = 4, seed: int = 2) -> Trace:
    """`times` as many requests: every one comes that often, each copy moved by up to 1 s, with a
    service time drawn from the trace.
    """
    rng = np.random.default_rng(seed)
    moved = np.repeat(trace.arrival_s, times) + rng.uniform(-1.0, 1.0, len(trace) * times)
    arrival_s = np.sort(np.clip(moved, 0.0, trace.duration_s - 1e-6))
    service_s = rng.choice(trace.service_s, len(arrival_s))
    return replace(trace, name=f"{trace.name}~x{times}", arrival_s=arrival_s, service_s=service_s)
