"""The local Ray: loopback only, own token, nothing left, whoever ends it and however."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sundog.rayapi.local import LocalRay, read_record, write_token

SUNDOG = str(Path(sys.executable).parent / "sundog")


def listening(processes: list[psutil.Process]) -> list[tuple[str, int]]:
    found = []
    for process in processes:
        try:
            connections = process.net_connections(kind="inet")
        except psutil.Error:
            continue
        found += [(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN]
    return found


def test_every_port_is_on_loopback(local_ray: LocalRay) -> None:
    sockets = listening(local_ray.processes())
    assert len(sockets) >= 5
    assert {ip for ip, _ in sockets} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, sockets


def test_the_token_is_needed_and_private(local_ray: LocalRay, tmp_path: Path) -> None:
    import httpx

    url = f"{local_ray.endpoints.dashboard}/api/jobs/"
    assert httpx.get(url, trust_env=False).status_code in (401, 403)
    path = write_token(tmp_path / "token")
    assert path.stat().st_mode & 0o777 == 0o600
    first = path.read_text()
    assert write_token(path).read_text() == first


def start_up(folder: Path, *options: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    environment["SUNDOG_HOME"] = str(folder / ".sundog")
    return subprocess.Popen(
        [SUNDOG, "up", *options], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def wait_for_line(process: subprocess.Popen[str], words: str) -> str:
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if words in line:
            return said
    raise AssertionError(said)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def gone(pids: list[int], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        alive = [
            p
            for p in pids
            if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE
        ]
        if not alive:
            return True
        time.sleep(0.2)
    return False


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_nothing_is_left_when_up_ends(tmp_path: Path, how: signal.Signals) -> None:
    up = start_up(tmp_path, "--gateway", f"http://127.0.0.1:{free_port()}", "--cpus", "1")
    try:
        wait_for_line(up, "Sundog is up")
        # a second one from the same folder is refused, with the way out
        second = start_up(tmp_path)
        said, _ = second.communicate(timeout=60)
        assert second.returncode == 1
        assert "already up" in said
        assert "SUNDOG_HOME" in said
        pids = [p.pid for p in psutil.Process(up.pid).children(recursive=True)]
        assert len(pids) > 5
        assert read_record(tmp_path / ".sundog") is not None
        up.send_signal(how)
        up.wait(timeout=30)
        assert gone(pids)
        assert read_record(tmp_path / ".sundog") is None
    finally:
        up.kill()
        up.wait()


def test_a_port_in_use_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        up = start_up(tmp_path, "--gateway", f"http://127.0.0.1:{port}")
        said, _ = up.communicate(timeout=60)
    assert up.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in said
    assert "--gateway" in said
    assert "Traceback" not in said


def test_the_record_tells_a_job_where_things_are(local_ray: LocalRay) -> None:
    script = "import ray; ray.init(); from sundog.rayapi.kv import get_config; print(get_config())"
    done = subprocess.run(
        ["ray", "job", "submit", "--", "python", "-c", script],
        env=local_ray.environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert local_ray.endpoints.root in done.stdout
