"""Plays IMDSv2 for one instance of the cloud on this machine. A notice is a file that a test writes.

python tests/cloud/metadata_service.py ADDRESS LIFE ZONE NOTICE_FILE
"""

from __future__ import annotations

import http.server
import sys
from pathlib import Path


def serve(address: str, life: str, zone: str, notice: Path) -> None:
    paths = {
        "instance-life-cycle": life,
        "placement/availability-zone": zone,
        "placement/region": zone[:-1],
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self._send(200, "token")

        def do_GET(self) -> None:
            key = self.path.removeprefix("/latest/meta-data/")
            if not self.headers.get("X-aws-ec2-metadata-token"):
                self._send(401, "")
            elif key == "spot/instance-action" and notice.exists():
                self._send(200, notice.read_text())
            elif key in paths:
                self._send(200, paths[key])
            else:
                self._send(404, "")

        def _send(self, status: int, body: str) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None:
            pass

    http.server.ThreadingHTTPServer((address, 80), Handler).serve_forever()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
