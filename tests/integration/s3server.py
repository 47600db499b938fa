"""A real S3-protocol server in a process of its own, and a TCP proxy that breaks connections.

For tests. The server is moto's (see docs/decisions/0102); it ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import urllib.parse
import uuid
from collections.abc import Iterator

import boto3

_SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until the test process closes it or dies
server.stop()
"""

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint (`http://127.0.0.1:<free port>`) of a server that lives inside the block."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_ENDPOINT")}
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment | CREDENTIALS,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = process.stdout.readline().strip()
        assert port, "moto's server did not start: pip install 'moto[server]'"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def make_bucket(endpoint: str) -> str:
    """A new bucket; returns its name."""
    name = f"sundog-{uuid.uuid4().hex[:12]}"
    client(endpoint).create_bucket(Bucket=name)
    return name


def client(endpoint: str):  # type: ignore[no-untyped-def]
    """A plain boto3 client, to look at the bucket past the code under test."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


class BreakingProxy:
    """Forwards TCP to `endpoint`; can cut every connection after a number of bytes.

    `ignore_conditions`: hide the conditions of conditional puts, as some services ignore them.
    `cut_upload_after`: reset once so many bytes went to the server. `drop_answers`: let the
    request through, then reset before the answer comes back. None of it is seen by HTTP.
    """

    def __init__(self, endpoint: str) -> None:
        target = urllib.parse.urlsplit(endpoint)
        assert target.hostname
        assert target.port
        self._target = (target.hostname, target.port)
        self.cut_upload_after: int | None = None
        self.drop_answers = 0
        self.ignore_conditions = False
        self.num_cut = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def __enter__(self) -> BreakingProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                threading.Thread(target=self._up, args=(near, far), daemon=True).start()
                threading.Thread(target=self._down, args=(near, far), daemon=True).start()

    def _up(self, near: socket.socket, far: socket.socket) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := near.recv(1 << 16):
                passed += len(data)
                if self.cut_upload_after is not None and passed > self.cut_upload_after:
                    self._cut(near, far)
                    return
                if self.ignore_conditions:
                    data = data.replace(b"If-None-Match:", b"X--None-Match:")
                    data = data.replace(b"If-Match:", b"X--Match:")
                far.sendall(data)
            far.shutdown(socket.SHUT_WR)

    def _down(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(1 << 16):
                if self.drop_answers > 0 and b"100 Continue" not in data[:40]:
                    self.drop_answers -= 1
                    self._cut(near, far)
                    return
                near.sendall(data)
            near.shutdown(socket.SHUT_WR)

    def _cut(self, near: socket.socket, far: socket.socket) -> None:
        self.num_cut += 1
        # Linger 0 sends RST instead of FIN: the peer sees a broken connection, not an end.
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        near.shutdown(socket.SHUT_RD)
        near.close()
        far.close()
