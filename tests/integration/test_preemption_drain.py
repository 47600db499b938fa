"""A real notice on a real, small Ray: the agent drains the node, work on it finishes, none is added.

The cluster lives in a child process: Ray reads its token mode once, when it is first imported.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from several_nodes import run_alone

NOTICE = {"answer": (404, "")}


class Metadata(http.server.BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        self._send(200, "token")

    def do_GET(self) -> None:
        path = "/latest/meta-data/spot/instance-action"
        self._send(*(NOTICE["answer"] if self.path == path else (404, "")))

    def _send(self, status: int, body: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def metadata_service() -> Iterator[str]:
    NOTICE["answer"] = (404, "")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def two_nodes() -> Iterator[str]:
    """The address of a head without CPUs and a one-CPU node that the cloud calls i-1."""
    import ray
    from ray.cluster_utils import Cluster

    memory = 128 * 2**20
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": memory}
    )
    made.add_node(
        num_cpus=1, object_store_memory=memory, resources={"spot": 1},
        env_vars={"RAY_CLOUD_INSTANCE_ID": "i-1"},
    )  # fmt: skip
    ray.init(address=made.address)
    try:
        yield made.address
    finally:
        ray.shutdown()
        made.shutdown()


def until(what: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.2)


def test_a_notice_drains_the_node_and_the_task_on_it_finishes(tmp_path: Path) -> None:
    run_alone(__file__, str(tmp_path), limit_s=200)


def scenario(address: str, metadata: str, folder: Path) -> None:
    import ray

    from sundog.rayapi.drain import Gcs

    gate, began = folder / "gate", folder / "began"

    @ray.remote(num_cpus=1)
    def work(began: str, path: str) -> str:
        Path(began).touch()
        while not Path(path).exists():
            time.sleep(0.05)
        return "done"

    running = work.remote(str(began), str(gate))
    until(began.exists)  # an idle node would be gone as soon as it is drained
    gcs = Gcs(address)
    node = next(n for n in gcs.nodes() if n.instance_id == "i-1")
    agent = subprocess.Popen(
        [sys.executable, "-m", "sundog.capacity.preemption", "aws", "--gcs", address,
         "--instance", "i-1", "--metadata", metadata],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "HOME": str(folder)},
    )  # fmt: skip
    try:
        ends = datetime.fromtimestamp(time.time() + 120, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        NOTICE["answer"] = (200, json.dumps({"action": "terminate", "time": ends}))
        assert agent.stdout is not None
        told = json.loads(agent.stdout.readline())
        assert (told["event"], told["node"]) == ("drained", node.node_id)
        assert 60 < told["deadline_s"] - told["at_s"] <= 120

        def status() -> str:
            return next((n.status for n in gcs.nodes() if n.instance_id == "i-1"), "GONE")

        until(lambda: status() == "DRAINING")
        gate.touch()
        assert ray.get(running, timeout=60) == "done"
        late = work.remote(str(folder / "late"), str(gate))
        ready, _ = ray.wait([late], timeout=3)
        assert ready == [], "a draining node took new work"
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.wait()


if __name__ == "__main__":
    with metadata_service() as url, two_nodes() as gcs_address:
        scenario(gcs_address, url, Path(sys.argv[1]))
