"""What the serving tests share: tiny models in a registry, deployment files, load that checks answers."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch
import yaml

from sundog.rayapi.local import LocalRay
from sundog.storage.models import ModelVersion, Registry
from sundog.storage.programs import export_program
from sundog.storage.root import open_root
from sundog.storage.signature import Signature, TensorSpec

WIDTH = 4


class Scale(torch.nn.Module):
    """y = x * factor: every answer tells which version gave it."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": x * self.factor}


def register_scale(
    root_url: str, name: str, factor: float, folder: Path, alias: str | None = "champion"
) -> ModelVersion:
    path = folder / f"{name}-{factor}.pt2"
    signature = export_program(Scale(factor), {"x": torch.zeros(2, WIDTH)}, path)
    return Registry(open_root(root_url)).import_export(name, path, signature, alias=alias)


PYTHON_MODEL = """
import os, time
import numpy as np

class Odd:
    def predict(self, inputs):
        x = inputs["x"]
        if float(x.reshape(-1)[0]) < 0:
            raise ValueError("no negative numbers here")
        word = np.array([b"caf\\xc3\\xa9"], dtype=object)
        return {"y": x + 1, "pid": np.array([os.getpid()]), "word": word}
"""


def register_python(root_url: str, name: str, folder: Path) -> ModelVersion:
    source = folder / f"{name}-src"
    source.mkdir()
    (source / "odd.py").write_text(PYTHON_MODEL)
    signature = Signature(
        (TensorSpec("x", "FP64", (-1, 2)),),
        (
            TensorSpec("y", "FP64", (-1, 2)),
            TensorSpec("pid", "INT64", (1,)),
            TensorSpec("word", "BYTES", (1,)),
        ),
    )
    return Registry(open_root(root_url)).import_python(
        name, source, "odd:Odd", signature, alias="champion"
    )


STREAM_MODEL = """
import asyncio
from pathlib import Path
import numpy as np

class Words:
    async def predict(self, inputs):
        words = [w.decode() for w in inputs["text_input"].reshape(-1)[0].split()]
        if words[0] == "forever":
            try:
                while True:
                    yield self.part("tick")
                    await asyncio.sleep(0.02)
            finally:
                Path(words[1]).touch()
        for word in words:
            if word == "oops":
                raise ValueError("no such word")
            yield self.part(word)

    def part(self, word):
        return {"text_output": np.array([word.encode()], dtype=object)}
"""


def register_stream(root_url: str, name: str, folder: Path) -> ModelVersion:
    """Answers with one part a word; `forever PATH` never ends and touches PATH when it is ended."""
    source = folder / f"{name}-src"
    source.mkdir()
    (source / "words.py").write_text(STREAM_MODEL)
    signature = Signature(
        (TensorSpec("text_input", "BYTES", (1,)),), (TensorSpec("text_output", "BYTES", (1,)),)
    )
    return Registry(open_root(root_url)).import_python(
        name, source, "words:Words", signature, alias="champion"
    )


AROUND = """
import numpy as np

class Around:
    def before(self, inputs):
        [text] = inputs["text"]
        return {"x": np.array([[float(w) for w in text.split()]], np.float32)}

    def after(self, outputs):
        words = " ".join(f"{v:g}" for v in outputs["y"][0])
        return {"words": np.array([words.encode()], dtype=object)}
"""


def register_around(root_url: str, name: str, folder: Path) -> ModelVersion:
    """What makes a model of numbers one of words: `1 2 3 4` in, `2 4 6 8` out."""
    source = folder / f"{name}-src"
    source.mkdir()
    (source / "around.py").write_text(AROUND)
    signature = Signature(
        (TensorSpec("text", "BYTES", (1,)),), (TensorSpec("words", "BYTES", (1,)),)
    )
    return Registry(open_root(root_url)).import_python(name, source, "around:Around", signature)


@contextmanager
def three_kinds(local_ray: LocalRay, prefix: str, folder: Path, max_body: str) -> Iterator[str]:
    """The gateway's address, with services scale (exported), odd (python) and words (in parts)."""
    root = local_ray.endpoints.root
    register_scale(root, f"{prefix}-scale", 2.0, folder)
    register_python(root, f"{prefix}-odd", folder)
    register_stream(root, f"{prefix}-words", folder)
    file = write_deployment(
        folder / "d.yaml",
        {"service": "scale", "model": f"{prefix}-scale@champion", "max_body": max_body},
        {
            "service": "odd",
            "model": f"{prefix}-odd@champion",
            "allow_code": True,
            "capture": {"share": "100%", "leave_out": ["word"]},
        },
        {"service": "words", "model": f"{prefix}-words@champion", "allow_code": True},
    )
    serve_cli(local_ray, "deploy", file)
    gateway = local_ray.endpoints.gateway
    wait_ready(gateway, "scale")
    for name in ("odd", "words"):
        url = f"{gateway}/v2/models/{name}/ready"
        wait_for(f"{name} ready", lambda url=url: httpx.get(url, trust_env=False).is_success)
    yield gateway
    (folder / "empty.yaml").write_text("proxy_location: Disabled\napplications: []\n")
    serve_cli(local_ray, "deploy", folder / "empty.yaml")


def write_deployment(path: Path, *specs: dict[str, Any]) -> Path:
    apps = [
        {"name": s["service"], "import_path": "sundog:service", "route_prefix": None, "args": s}
        for s in specs
    ]
    path.write_text(yaml.safe_dump({"proxy_location": "Disabled", "applications": apps}))
    return path


def serve_cli(ray: LocalRay, *words: str | Path) -> str:
    """Ray's own `serve` command; its output. Fails the test when the command fails."""
    command = [str(Path(sys.executable).parent / "serve"), *map(str, words)]
    done = subprocess.run(
        command, env=ray.environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def serve_status(ray: LocalRay) -> dict[str, Any]:
    """Serve's applications, from its REST API."""
    token = Path(ray.endpoints.token_path).read_text().strip()
    answer = httpx.get(
        f"{ray.endpoints.dashboard}/api/serve/applications/",
        headers={"Authorization": f"Bearer {token}"}, timeout=30, trust_env=False,
    )  # fmt: skip
    return answer.raise_for_status().json()["applications"]


def wait_for(what: str, check: Callable[[], Any], timeout_s: float = 150) -> Any:
    """The first true answer of `check`."""
    end = time.monotonic() + timeout_s
    last: Any = None
    while time.monotonic() < end:
        try:
            last = check()
        except (httpx.HTTPError, KeyError, IndexError) as error:
            last = error
        else:
            if last:
                return last
        time.sleep(0.1)
    raise AssertionError(f"{what} did not come about in {timeout_s} s; last: {last!r}")


def x_body(rows: list[list[float]], **more: Any) -> dict[str, Any]:
    return {
        "inputs": [
            {
                "name": "x", "datatype": "FP32", "shape": [len(rows), WIDTH],
                "data": [v for row in rows for v in row],
            }
        ],
        **more,
    }  # fmt: skip


def infer(gateway: str, service: str, rows: list[list[float]]) -> tuple[str, list[Any]]:
    """(version, values)"""
    answer = httpx.post(
        f"{gateway}/v2/models/{service}/infer", json=x_body(rows), timeout=30, trust_env=False
    )
    assert answer.status_code == 200, answer.text
    document = answer.json()
    return document["model_version"], document["outputs"][0]["data"]


def wait_ready(gateway: str, service: str, version: str | None = None) -> None:
    def ready() -> bool:
        answer = httpx.get(f"{gateway}/v2/models/{service}/ready", timeout=5, trust_env=False)
        if answer.status_code != 200:
            return False
        return version is None or infer(gateway, service, [[1.0] * WIDTH])[0] == version

    wait_for(f"{service} {version or ''} ready", ready)


@dataclass
class Load:
    """What a load saw: answers by version, and every failure."""

    answers: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.answers.values())


@contextmanager
def load(gateway: str, service: str, factors: dict[str, float], clients: int = 4) -> Iterator[Load]:
    """Requests without pause until the block ends, every value of every answer checked."""
    seen, stop, lock = Load(), threading.Event(), threading.Lock()

    def client(seed: int) -> None:
        rng = np.random.default_rng(seed)
        url = f"{gateway}/v2/models/{service}/infer"
        with httpx.Client(timeout=30, trust_env=False) as session:
            while not stop.is_set():
                rows = (
                    rng.integers(-50, 50, (int(rng.integers(1, 4)), WIDTH)).astype(float).tolist()
                )
                try:
                    answer = session.post(url, content=json.dumps(x_body(rows)))
                    document = answer.json()
                    version = document.get("model_version")
                    want = [v * factors.get(version, 0) for row in rows for v in row]
                    good = answer.status_code == 200 and document["outputs"][0]["data"] == want
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    good, version, document = False, None, repr(error)
                with lock:
                    if good:
                        seen.answers[version] = seen.answers.get(version, 0) + 1
                    else:
                        seen.failures.append(str(document)[:300])

    with in_threads(client, clients, stop):
        yield seen


@contextmanager
def in_threads(work: Callable[[int], None], count: int, stop: threading.Event) -> Iterator[None]:
    """`work(0)`, `work(1)`, … beside the body; at its end `stop` is set and they are waited for."""
    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(35)


def processes(ray: LocalRay, word: str) -> list[psutil.Process]:
    """This Ray's processes whose title has the word, such as an actor's name."""
    found = []
    for process in ray.processes():
        try:
            if word in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


KEY_SCRIPT = """
import json, sys, ray
from sundog.control.client import ControlClient
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
client = ControlClient()
print(json.dumps(getattr(client, sys.argv[2])(**json.loads(sys.argv[3]))))
"""


def ask_control(local_ray: LocalRay, method: str, **arguments: Any) -> Any:
    """In a process of its own: this one stays free of a Ray connection."""
    done = subprocess.run(
        [sys.executable, "-c", KEY_SCRIPT, local_ray.endpoints.gcs, method, json.dumps(arguments)],
        env=local_ray.environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
