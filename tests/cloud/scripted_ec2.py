"""moto's EC2 as a server process of its own, with scripted refusals, latency and idempotent launches.

    python tests/cloud/scripted_ec2.py --host 127.0.0.1 --port 0 --port-file FILE

POST /__script__ {"refuse": [{"market": "spot", "zone": "use1-az1", "code": "…"}], "latency_s": 0.1}
replaces the script; GET /__calls__ lists every RunInstances call. moto ignores ClientToken, so the
idempotency that EC2 promises is added here.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from wsgiref.util import setup_testing_defaults

os.environ.setdefault("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
os.environ.setdefault("AWS_ACCESS_KEY_ID", "testing")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "testing")

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
ERROR = (
    '<?xml version="1.0" encoding="UTF-8"?><Response><Errors><Error><Code>{code}</Code>'
    "<Message>{message}</Message></Error></Errors><RequestID>{id}</RequestID></Response>"
)


class Script:
    """What is refused now, and what was asked for."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.refuse: list[dict[str, str]] = []
        self.latency_s = 0.0
        self.calls: list[dict[str, Any]] = []
        self.answers: dict[str, tuple[str, list[Any], bytes]] = {}
        self.zones: dict[str, tuple[str, str]] = {}

    def refusal(self, launch: dict[str, str]) -> str | None:
        for rule in self.refuse:
            wanted = {k: v for k, v in rule.items() if k != "code"}
            if all(v in (launch.get(k), launch.get(f"{k}_name")) for k, v in wanted.items()):
                return rule.get("code", "InsufficientInstanceCapacity")
        return None


class ScriptedEc2:
    def __init__(self, app: Wsgi, keys: Path | None = None) -> None:
        self.app, self.keys = app, keys
        self.script = Script()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        setup_testing_defaults(environ)
        path = environ.get("PATH_INFO", "")
        if path == "/__script__":
            return self._set(environ, start)
        if path == "/__calls__":
            return _json(start, self.script.calls)
        body = _body(environ)
        if "SendSSHPublicKey" in environ.get("HTTP_X_AMZ_TARGET", ""):
            return self._push(json.loads(body), start)
        form = {k: v[0] for k, v in parse_qs(body.decode("latin1")).items()}
        if form.get("Action") != "RunInstances":
            if form.get("Action") and self.script.latency_s:
                time.sleep(self.script.latency_s)
            return self.app(environ, start)
        return self._run(form, environ, start)

    def _push(self, asked: dict[str, str], start: Callable[..., Any]) -> Iterable[bytes]:
        """Instance Connect: the key opens the machines of this cloud (EC2: one, for a minute)."""
        if self.keys is not None:
            with self.keys.open("a") as file:
                file.write(asked["SSHPublicKey"] + "\n")
        return _json(start, {"RequestId": uuid.uuid4().hex, "Success": True})

    def _set(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        new = json.loads(_body(environ) or b"{}")
        with self.script.lock:
            self.script.refuse = new.get("refuse", [])
            self.script.latency_s = float(new.get("latency_s", self.script.latency_s))
        return _json(start, {"ok": True})

    def _run(
        self, form: dict[str, str], environ: dict[str, Any], start: Callable[..., Any]
    ) -> Iterable[bytes]:
        at_s = time.time()
        if self.script.latency_s:
            time.sleep(self.script.latency_s)
        subnet = form.get("SubnetId") or form.get("NetworkInterface.1.SubnetId", "")
        name, zone_id = self._zone(subnet)
        launch = {
            "market": form.get("InstanceMarketOptions.MarketType", "on-demand"),
            "shape": form.get("InstanceType", ""), "zone": zone_id, "zone_name": name,
        }  # fmt: skip
        token = form.get("ClientToken", "")
        with self.script.lock:
            code = self.script.refusal(launch)
            self.script.calls.append(
                {
                    **launch,
                    "at_s": at_s,
                    "answered_s": time.time(),
                    "refused": code,
                    "count": form.get("MaxCount"),
                    "token": token,
                }
            )
            if code is None and token in self.script.answers:
                status, headers, kept = self.script.answers[token]
                start(status, headers)
                return [kept]
        if code is not None:
            text = ERROR.format(
                code=code, message=f"scripted: no {launch['market']}", id=uuid.uuid4()
            )
            start("400 Bad Request", [("Content-Type", "text/xml")])
            return [text.encode()]
        caught: list[Any] = []
        answer = b"".join(self.app(environ, lambda s, h, e=None: caught.extend((s, h))))
        if token and str(caught[0]).startswith("200"):
            with self.script.lock:
                self.script.answers[token] = (caught[0], caught[1], answer)
        start(caught[0], caught[1])
        return [answer]

    def _zone(self, subnet: str) -> tuple[str, str]:
        if subnet not in self.script.zones:
            from moto.ec2.models import ec2_backends

            for account in ec2_backends.values():
                for backend in account.values():
                    for group in backend.subnets.values():
                        for each in group.values():
                            self.script.zones[each.id] = (
                                each.availability_zone, each._availability_zone.zone_id
                            )  # fmt: skip
        return self.script.zones.get(subnet, ("", ""))


def _body(environ: dict[str, Any]) -> bytes:
    """The request's body, put back for the next reader."""
    import io

    length = int(environ.get("CONTENT_LENGTH") or 0)
    data: bytes = environ["wsgi.input"].read(length) if length else b""
    environ["wsgi.input"] = io.BytesIO(data)
    return data


def _json(start: Callable[..., Any], data: Any) -> Iterable[bytes]:
    start("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(data).encode()]


def main() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--port-file", type=Path)
    parser.add_argument("--keys", type=Path, help="where keys pushed by Instance Connect go")
    arguments = parser.parse_args()
    app = ScriptedEc2(DomainDispatcherApplication(create_backend_app), arguments.keys)
    server = make_server(arguments.host, arguments.port, app, threaded=True)
    if arguments.port_file:
        part = arguments.port_file.with_suffix(".part")
        part.write_text(str(server.server_port))
        part.replace(arguments.port_file)
    server.serve_forever()


if __name__ == "__main__":
    main()
