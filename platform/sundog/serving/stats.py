"""What a gateway counts: per version for the protocol's statistics, per service for Prometheus.

Counts in place and prints on demand; nobody waits for it and nothing is sent anywhere.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Any

from sundog import telemetry
from sundog.clock import WALL

BUCKETS_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip

EACH_ROWS = 256
"""Sizes of calls up to this one are counted each; larger ones together, up to the next power of two."""


class Histogram:
    """Seconds, in Prometheus' buckets."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.sum_s += seconds

    def lines(self, name: str, **labels: str) -> list[str]:
        total, out = 0, []
        for bound, n in zip((*BUCKETS_S, "+Inf"), self.counts, strict=True):
            total += n
            out.append(f"{name}_bucket{_labels(**labels, le=str(bound))} {total}")
        words = _labels(**labels)
        return [*out, f"{name}_count{words} {total}", f"{name}_sum{words} {self.sum_s:g}"]


class LaneStats:
    """Of one version: requests, rows, calls of the model, and where the time went (seconds)."""

    __slots__ = (
        "arrivals", "batches", "executions", "fail_count", "fail_s", "first", "infer_s", "last_s",
        "queue_s", "rows", "success_count", "success_s",
    )  # fmt: skip

    def __init__(self) -> None:
        # Never falls: what came, whether it was let in, answered, refused or given up.
        self.arrivals = 0
        self.rows = self.executions = self.success_count = self.fail_count = 0
        self.success_s = self.fail_s = self.queue_s = self.infer_s = 0.0
        self.last_s = 0.0
        self.first: Histogram | None = None
        """From a request to the first part of its answer, where answers come in parts."""
        self.batches: dict[int, list[float]] = {}

    def executed(self, rows: int, seconds: float) -> None:
        self.executions += 1
        self.infer_s += seconds
        self.last_s = WALL.now_s()
        if rows > EACH_ROWS:  # requests may have any number: a series for each would have no end
            rows = 1 << (rows - 1).bit_length()
        entry = self.batches.get(rows)
        if entry is None:
            entry = self.batches[rows] = [0, 0.0]
        entry[0] += 1
        entry[1] += seconds

    def first_part(self, seconds: float) -> None:
        self.first = self.first or Histogram()
        self.first.add(seconds)

    def document(self, name: str, version: str) -> dict[str, Any]:
        """One entry of the protocol's `model_stats`."""
        batches = [
            {"batch_size": rows, "compute_infer": _duration(int(n), s)}
            for rows, (n, s) in sorted(self.batches.items())
        ]
        return {
            "name": name,
            "version": version,
            "last_inference": int(self.last_s * 1000),
            "inference_count": self.rows,
            "execution_count": self.executions,
            "inference_stats": {
                "success": _duration(self.success_count, self.success_s),
                "fail": _duration(self.fail_count, self.fail_s),
                "queue": _duration(self.success_count, self.queue_s),
                "compute_infer": _duration(self.executions, self.infer_s),
            },
            "batch_stats": batches,
        }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": int(seconds * 1e9)}


class Metrics:
    """Requests by (service, version, key, status), and latency by (service, version)."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, str, int], int] = {}
        self._latency: dict[tuple[str, str], Histogram] = {}
        self._tokens: dict[tuple[str, str, str], int] = {}
        self._refused: dict[tuple[str, str, int], int] = {}
        self.more: Callable[[], list[str]] = list
        """Lines that something else counts."""

    def tokens(self, service: str, key: str, kind: str, count: int) -> None:
        """Tokens that an upstream reported. `kind`: input or output."""
        label = (service, _key_label(key), kind)
        self._tokens[label] = self._tokens.get(label, 0) + count

    def refused(self, service: str, key: str, status: int) -> None:
        """A request that its key, or the lack of one, did not let in: 401, 403 or 429."""
        label = (service, _key_label(key), status)
        self._refused[label] = self._refused.get(label, 0) + 1

    def count(self, service: str, version: str, key: str, status: int, seconds: float) -> None:
        label = (service, version, _key_label(key), status)
        self._requests[label] = self._requests.get(label, 0) + 1
        if not 200 <= status < 300:  # refusals are quick: they would flatter it
            return
        histogram = self._latency.get((service, version))
        if histogram is None:
            histogram = self._latency[service, version] = Histogram()
        histogram.add(seconds)

    def text(
        self,
        gauges: Iterable[tuple[str, str, dict[str, float]]],
        firsts: Iterable[tuple[str, str, Histogram]] = (),
    ) -> str:
        """Prometheus' text format. `gauges`: (service, version, {metric: value}); `firsts`: how long
        first parts of answers took."""
        out = [f"# TYPE {telemetry.GATEWAY_REQUESTS} counter"]
        for (service, version, key, status), n in sorted(self._requests.items()):
            labels = _labels(service=service, version=version, key=key, status=str(status))
            out.append(f"{telemetry.GATEWAY_REQUESTS}{labels} {n}")
        out.append(f"# TYPE {telemetry.GATEWAY_LATENCY_S} histogram")
        for (service, version), histogram in sorted(self._latency.items()):
            out += histogram.lines(telemetry.GATEWAY_LATENCY_S, service=service, version=version)
        out.append(f"# TYPE {telemetry.GATEWAY_FIRST_PART_S} histogram")
        for service, version, histogram in firsts:
            out += histogram.lines(telemetry.GATEWAY_FIRST_PART_S, service=service, version=version)
        out.append(f"# TYPE {telemetry.GATEWAY_TOKENS} counter")
        for (service, key, kind), n in sorted(self._tokens.items()):
            out.append(
                f"{telemetry.GATEWAY_TOKENS}{_labels(service=service, key=key, kind=kind)} {n}"
            )
        out.append(f"# TYPE {telemetry.GATEWAY_REFUSED} counter")
        for (service, key, status), n in sorted(self._refused.items()):
            labels = _labels(service=service, key=key, status=str(status))
            out.append(f"{telemetry.GATEWAY_REFUSED}{labels} {n}")
        rows = list(gauges)
        for metric in sorted({m for _, _, values in rows for m in values}):
            out.append(f"# TYPE {metric} gauge")
            out += [
                f"{metric}{_labels(service=s, version=v)} {values[metric]:g}"
                for s, v, values in rows
                if metric in values
            ]
        out += self.more()
        return "\n".join(out) + "\n"


def _key_label(key: str) -> str:
    """Keys are made by operators; subjects of tokens come without end, and share one series."""
    return key if not key.startswith("jwt:") else "jwt"


def _labels(**labels: str) -> str:
    def escape(value: str) -> str:
        return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    return "{" + ",".join(f'{k}="{escape(v)}"' for k, v in labels.items()) + "}"
