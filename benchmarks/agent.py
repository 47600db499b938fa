"""What the agent beside each raylet costs: CPU time of one core and memory, while nothing happens.

    python benchmarks/agent.py --json OUT

Runs the agent as the start commands do, against a metadata service on this machine that has nothing
to say. Imports are not counted: they happen once.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from this_machine import machine

SETTLE_S = 6.0


class Quiet(http.server.BaseHTTPRequestHandler):
    """IMDSv2 of an on-demand node: a token, and 404 for every notice."""

    asked = 0

    def do_PUT(self) -> None:
        self._send(200, "token")

    def do_GET(self) -> None:
        if self.path.endswith("spot/instance-action"):
            Quiet.asked += 1
        self._send(404, "")

    def _send(self, status: int, body: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: Any) -> None:
        pass


def measure(seconds: float) -> dict[str, Any]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as home:
        agent = subprocess.Popen(
            [sys.executable, "-m", "sundog.capacity.preemption", "aws", "--gcs", "127.0.0.1:1",
             "--instance", "i-1", "--metadata", f"http://127.0.0.1:{server.server_port}"],
            env={**os.environ, "HOME": home}, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            process = psutil.Process(agent.pid)
            deadline = time.monotonic() + 60
            while not Quiet.asked and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(SETTLE_S)
            asked, start, before = Quiet.asked, time.monotonic(), process.cpu_times()
            time.sleep(seconds)
            after, took = process.cpu_times(), time.monotonic() - start
            memory = process.memory_info().rss
        finally:
            agent.terminate()
            agent.wait()
            server.shutdown()
    used = after.user + after.system - before.user - before.system
    return {
        "cpu_percent_of_a_core": round(100 * used / took, 3),
        "polls": Quiet.asked - asked,
        "seconds": round(took, 1),
        "memory_mib": round(memory / 2**20, 1),
        "machine": machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20 seconds instead of two minutes")
    parser.add_argument("--seconds", type=float, help="how long to watch it (120, quick 20)")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    found = measure(arguments.seconds or (20.0 if arguments.quick else 120.0))
    print(
        f"agent  {found['cpu_percent_of_a_core']:.2f}% of a core · {found['memory_mib']:.0f} MiB · "
        f"{found['polls']} polls in {found['seconds']:.0f} s"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
