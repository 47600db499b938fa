"""A Ray of our own on this machine: own ports, own temp dir, own token, loopback only.

Starts and stops exactly the processes it started. Refuses to touch any other Ray.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psutil

from sundog.clock import WALL
from sundog.errors import ClusterError, FormatTooNew

_START_TIMEOUT_S = 60.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Endpoints:
    """Where a running Sundog is; what `sundog env` exports."""

    gcs: str
    dashboard: str
    gateway: str
    root: str
    token_path: str
    pid: int = 0
    gateway_grpc: str = ""
    """`host:port`; empty: the gateway speaks no gRPC"""

    def env(self) -> dict[str, str]:
        """Variables that make Ray's own CLIs and curl work as printed."""
        variables = {
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "RAY_DASHBOARD_ADDRESS": self.dashboard,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": self.token_path,
            "SUNDOG_ROOT": self.root,
            "SUNDOG_GATEWAY": self.gateway,
        }
        if self.gateway_grpc:
            variables["SUNDOG_GATEWAY_GRPC"] = self.gateway_grpc
        if self.gcs.startswith("127."):
            # A driver on this machine. Ray otherwise swaps 127.0.0.1 for the machine's address, on
            # which nothing of ours listens.
            variables |= {"RAY_ADDRESS": self.gcs, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        return variables


def free_ports(count: int) -> list[int]:
    """Ports that were free just now. Below 32768, so that no outgoing connection takes one."""
    with ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            port = 20000 + secrets.randbelow(12000)
            probe = held.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
        return ports


def write_token(path: Path) -> Path:
    """A fresh token file of mode 0600; an existing one is kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        path.chmod(0o600)
        return path
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))
    return path


class LocalRay:
    """One head node on loopback, alive until `stop` or until the process that made it is gone."""

    def __init__(
        self,
        root: str,
        *,
        num_cpus: int | None = None,
        object_store_bytes: int = 512 * 2**20,
        gateway: str | None = None,
        gateway_grpc: str | None = None,
        gateways: int = 1,
        token_path: Path | None = None,
    ) -> None:
        self.num_cpus = num_cpus or os.cpu_count() or 1
        # A socket's path may have 107 bytes: Ray adds about 60 of its own.
        self.temp_dir = Path(tempfile.mkdtemp(prefix="sundog-", dir="/tmp"))
        self._log_path = self.temp_dir / "ray-start.log"
        self._object_store_bytes = object_store_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._gateways = gateways
        token = write_token(token_path or self.temp_dir / "token")
        gcs, dashboard, client, agent, metrics, runtime_env, gateway_port, grpc_port = free_ports(8)
        self._ports = {
            "port": gcs,
            "dashboard-port": dashboard,
            "ray-client-server-port": client,
            "dashboard-agent-listen-port": agent,
            "metrics-export-port": metrics,
            "runtime-env-agent-port": runtime_env,
        }
        self.endpoints = Endpoints(
            gcs=f"127.0.0.1:{gcs}",
            dashboard=f"http://127.0.0.1:{dashboard}",
            gateway=gateway or f"http://127.0.0.1:{gateway_port}",
            root=root,
            token_path=str(token),
            gateway_grpc=f"127.0.0.1:{grpc_port}" if gateway_grpc is None else gateway_grpc,
        )

    def environment(self) -> dict[str, str]:
        """What Ray's processes, and so every job and replica, inherit."""
        inherited = {
            k: v
            for k, v in os.environ.items()
            if k not in ("RAY_ADDRESS", "RAY_JOB_ID", "PYTHONPATH")
        }
        autoscaler_metrics, dashboard_metrics = free_ports(2)
        return {
            **inherited,
            # Not the address of a Ray that is about to start.
            **{k: v for k, v in self.endpoints.env().items() if k != "RAY_ADDRESS"},
            "RAY_USAGE_STATS_ENABLED": "0",
            # A cancelled driver has this long to say so in its record; three seconds are too few
            # where everything is busy.
            "RAY_JOB_STOP_WAIT_TIME_S": "15",
            "AUTOSCALER_METRIC_PORT": str(autoscaler_metrics),
            "DASHBOARD_METRIC_PORT": str(dashboard_metrics),
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        }

    def start(self) -> Endpoints:
        """Start and wait until jobs can be submitted. Raises ClusterError with the end of Ray's log."""
        command = [
            str(Path(sys.executable).parent / "ray"), "start", "--head", "--block",
            "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1",
            "--include-dashboard=true", "--disable-usage-stats",
            "--min-worker-port=0", "--max-worker-port=0",
            f"--temp-dir={self.temp_dir}", f"--num-cpus={self.num_cpus}",
            f"--object-store-memory={self._object_store_bytes}",
            *(f"--{name}={port}" for name, port in self._ports.items()),
        ]  # fmt: skip
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env=self.environment(), cwd=self.temp_dir, start_new_session=True,
                preexec_fn=_end_with_parent,
            )  # fmt: skip
        self.endpoints = Endpoints(**{**asdict(self.endpoints), "pid": self._process.pid})
        try:
            self._wait_until_ready()
            self._write_config(
                {"root": self.endpoints.root, "gateway": self.endpoints.gateway,
                 "gateways": self._gateways}
            )  # fmt: skip
        except BaseException:
            self.stop()
            raise
        return self.endpoints

    def _wait_until_ready(self) -> None:
        token = Path(self.endpoints.token_path).read_text().strip()
        deadline = WALL.monotonic_s() + _START_TIMEOUT_S
        while WALL.monotonic_s() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                break
            try:
                answer = httpx.get(
                    f"{self.endpoints.dashboard}/api/jobs/",
                    headers={"Authorization": f"Bearer {token}"}, timeout=5, trust_env=False,
                )  # fmt: skip
                if answer.status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            WALL.sleep(0.1)
        tail = self._log_path.read_text(errors="replace").strip().splitlines()[-6:]
        raise ClusterError(
            "Ray did not start on this machine:\n    " + "\n    ".join(tail),
            "`sundog doctor` looks at memory, ports and the temp dir",
        )

    def _write_config(self, config: dict[str, str | int]) -> None:
        # In a process of its own: Ray reads the token once a process, and this one may know
        # another cluster's.
        answer = subprocess.run(
            [sys.executable, "-m", "sundog.rayapi.kv", self.endpoints.gcs, json.dumps(config)],
            env=self.environment(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if answer.returncode != 0:
            raise ClusterError(
                f"Ray's record could not be written: {answer.stderr.strip()[-400:]}",
                "`sundog doctor` looks at memory, ports and the temp dir",
            )

    def processes(self) -> list[psutil.Process]:
        """Every process of this Ray, workers included."""
        if self._process is None:
            return []
        try:
            head = psutil.Process(self._process.pid)
            return [head, *head.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def stop(self) -> None:
        """End every process of this Ray, then remove its temp dir. Safe to call twice."""
        processes = self.processes()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(processes, timeout=8)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=5)
        if self._process is not None:
            self._process.wait(timeout=5)
        shutil.rmtree(self.temp_dir, ignore_errors=True)

    def __enter__(self) -> LocalRay:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextmanager
def environment(changes: dict[str, str]) -> Iterator[None]:
    """These variables in this process, for as long as the block runs."""
    before = {k: os.environ.get(k) for k in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _end_with_parent() -> None:
    # A demo that is killed outright must not leave a Ray behind: the kernel tells the child.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def record_path(home: Path) -> Path:
    return home / "up.json"


def write_record(home: Path, endpoints: Endpoints) -> None:
    """Remember the running Sundog of this folder, for `sundog env`."""
    home.mkdir(parents=True, exist_ok=True)
    temporary = record_path(home).with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps({"format": 1, **asdict(endpoints)}, indent=1))
    temporary.replace(record_path(home))


def read_record(home: Path) -> Endpoints | None:
    """The Sundog that `sundog up` started in this folder, if it still runs. FormatTooNew."""
    try:
        data = json.loads(record_path(home).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if data.pop("format", 1) != 1:
        raise FormatTooNew(
            f"{record_path(home)} was written by a later Sundog than this one, which reads format 1",
            "use the Sundog that started it, or another folder: SUNDOG_HOME=./.sundog-2",
        )
    endpoints = Endpoints(**data)
    try:
        alive = "ray" in " ".join(psutil.Process(endpoints.pid).cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        alive = False
    return endpoints if alive else None


def remove_record(home: Path) -> None:
    record_path(home).unlink(missing_ok=True)
