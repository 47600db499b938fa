"""Versions that are good, failing, slow, crashing or wrong, and a steady load that counts failures."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from serving_kit import in_threads

from sundog.storage.models import ModelVersion, Registry
from sundog.storage.root import open_root
from sundog.storage.signature import Signature, TensorSpec

SOURCE = """
import time
import numpy as np

FAIL_EVERY, SLOW_S, WRONG_EVERY = {fail_every}, {slow_s}, {wrong_every}
if {crash}:
    raise RuntimeError("this version does not load")


class Tuned:
    def predict(self, inputs):
        x = inputs["x"]
        number = x[:, 0].astype(np.int64)
        if SLOW_S:
            time.sleep(SLOW_S)
        if FAIL_EVERY and (number % FAIL_EVERY == 0).any():
            raise ValueError("this version fails on some numbers")
        even = (number % 2 == 0).astype(np.float32)
        if WRONG_EVERY:
            even = np.where(number % WRONG_EVERY == 0, 1 - even, even).astype(np.float32)
        return {{"scores": np.stack([1 - even, even], axis=1)}}
"""


def register(
    root_url: str,
    name: str,
    folder: Path,
    *,
    fail_every: int = 0,
    slow_s: float = 0.0,
    wrong_every: int = 0,
    crash: bool = False,
    width: int = 1,
    alias: str | None = None,
) -> ModelVersion:
    """A model that tells even numbers from odd ones, and its faults."""
    source = folder / f"{name}-{time.monotonic_ns()}"
    source.mkdir()
    text = SOURCE.format(fail_every=fail_every, slow_s=slow_s, wrong_every=wrong_every, crash=crash)
    (source / "tuned.py").write_text(text)
    signature = Signature(
        (TensorSpec("x", "FP32", (-1, width)),), (TensorSpec("scores", "FP32", (-1, 2)),)
    )
    return Registry(open_root(root_url)).import_python(
        name, source, "tuned:Tuned", signature, alias=alias, new_signature=width != 1
    )


@dataclass
class Seen:
    """Answers by version, failures by what was said, and when each version answered last."""

    answers: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    versions: list[tuple[float, str]] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.answers.values())

    @property
    def failed(self) -> int:
        return sum(self.failures.values())


def body(number: int) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [number]}
    return json.dumps({"inputs": [tensor]}).encode()


@contextmanager
def steady(
    gateway: str,
    service: str,
    *,
    rate: float = 300.0,
    clients: int = 6,
    feedback: bool = False,
) -> Iterator[Seen]:
    """About `rate` requests a second, numbers in turn; with `feedback`, answers are scored."""
    seen, stop, lock = Seen(), threading.Event(), threading.Lock()
    host = urlsplit(gateway).netloc
    began = time.monotonic()

    def client(first: int) -> None:
        connection = http.client.HTTPConnection(host, timeout=30)
        number = first
        while not stop.is_set():
            ahead = began + number / rate - time.monotonic()
            if ahead > 0:
                time.sleep(min(ahead, 0.2))
                continue
            status, document, request = _post(
                connection, f"/v2/models/{service}/infer", body(number)
            )
            with lock:
                if status == 200:
                    version = document["model_version"]
                    seen.answers[version] += 1
                    seen.versions.append((time.monotonic(), version))
                else:
                    seen.failures[f"{status} {document}"[:160]] += 1
            if feedback and status == 200:
                scores = document["outputs"][0]["data"]
                good = (scores[1] > scores[0]) == (number % 2 == 0)
                score = json.dumps({"request_id": request, "score": float(good)}).encode()
                status, document, _ = _post(connection, "/feedback", score)
                if status != 200:
                    with lock:
                        seen.failures[f"feedback {status}"] += 1
            number += clients

    with in_threads(client, clients, stop):
        yield seen


def _post(connection: http.client.HTTPConnection, path: str, data: bytes):
    try:
        connection.request("POST", path, data, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), answer.headers.get("x-request-id")
    except (OSError, http.client.HTTPException, ValueError) as error:
        connection.close()
        return 0, repr(error), None


def row(gateway: str, service: str) -> dict:
    """The service as `sundog services` sees it."""
    rows = httpx.get(f"{gateway}/sundog/services", timeout=10, trust_env=False).json()
    return next((r for r in rows if r["service"] == service), {})
