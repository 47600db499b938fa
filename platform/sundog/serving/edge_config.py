"""HAProxy's configuration for the edge: one address in front of this node's gateways. Text from values.

Requests that may be asked twice (inference of idempotent services) go to another gateway when theirs
dies; everything else is sent once, over a connection of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sundog.serving.http_body import BODY_TIMEOUT_S

MAX_RETRIED = 64 * 1024
"""Bytes of a request that HAProxy can send again; larger ones end with their gateway."""


@dataclass(frozen=True, order=True)
class Door:
    """A gateway's private sockets."""

    name: str
    path: str
    grpc_path: str = ""


@dataclass(frozen=True)
class Plan:
    """What the edge shall do. `listen`, `grpc`: host:port; `repeatable`: idempotent services;
    `certificate`: the digest of `folder`/tls.pem, empty without TLS."""

    listen: str
    folder: Path
    doors: tuple[Door, ...] = ()
    grpc: str = ""
    repeatable: tuple[str, ...] = ()
    threads: int = 1
    certificate: str = ""


def repeatable_paths(services: Iterable[str]) -> tuple[list[str], list[str]]:
    """(beginnings of paths, whole paths) of requests that may be sent twice."""
    names = sorted(services)
    return [f"/v2/models/{n}/" for n in names], [f"/predict/{n}" for n in names]


def render(plan: Plan) -> str:
    """The whole file. Services' names are plain words, so nothing has to be quoted."""
    begins, whole = repeatable_paths(plan.repeatable)
    rules = ["acl may_repeat method GET HEAD"]
    rules += [f"acl may_repeat path_beg {path}" for path in begins]
    rules += [f"acl may_repeat path {path}" for path in whole]
    again = [
        _server(
            d.name,
            d.path,
            "check inter 500ms fall 2 rise 1 observe layer4 error-limit 1 on-error mark-down",
        )
        for d in plan.doors
    ]
    # Whether they are well is seen once.
    once = [_server(d.name, d.path, f"track again/{d.name}") for d in plan.doors]
    parts = [
        _GLOBAL.format(folder=plan.folder, threads=plan.threads, size=MAX_RETRIED),
        "frontend http\n"
        + _indent([f"bind {plan.listen}{_tls(plan, 'http/1.1')}", *_FRONT, *rules, *_CHOICE]),
        "backend again\n" + _indent([*_AGAIN, *again]),
        "backend once\n" + _indent([*_ONCE, *once]),
    ]
    if plan.grpc:
        servers = [
            _server(d.name, d.grpc_path, f"track again/{d.name}") for d in plan.doors if d.grpc_path
        ]
        bind = f"bind {plan.grpc}{_tls(plan, 'h2')}"
        parts.append("listen grpc\n" + _indent([bind, "mode tcp", *_GRPC, *servers]))
    return "\n".join(parts)


def _tls(plan: Plan, protocol: str) -> str:
    if not plan.certificate:
        return ""
    # The digest makes a renewed certificate another text, which is reloaded.
    crt = plan.folder / "tls.pem"
    return f" ssl crt {crt} ssl-min-ver TLSv1.2 alpn {protocol} # {plan.certificate}"


def _server(name: str, path: str, options: str) -> str:
    return f"server {name} unix@{path} {options}"


def _indent(lines: Iterable[str]) -> str:
    return "".join(f"  {line}\n" for line in lines)


# A reload keeps the listening sockets; the old process closes idle connections with their next answer.
_GLOBAL = """\
global
  stats socket {folder}/admin.sock mode 600 level admin expose-fd listeners
  nbthread {threads}
  noreuseport
  maxconn 8192
  hard-stop-after 60s
  tune.bufsize {size}

defaults
  mode http
  timeout connect 1s
  timeout client 1h
  timeout server 1h
  timeout http-request 10s
  timeout http-keep-alive 75s
  timeout check 2s
  option http-keep-alive
  option idle-close-on-response
  option redispatch 1
  retries 3
  balance random(2)
"""
_FRONT = (
    # Made here, so that a request that is sent again is still the same one to quotas and logs.
    "http-request set-header x-request-id %[uuid()] unless { req.hdr(x-request-id) -m found }",
    "http-error status 503 content-type application/json string "
    '"{\\"error\\":\\"no gateway is ready\\"}" hdr retry-after 1',
    "http-error status 408 content-type application/json string "
    '"{\\"error\\":\\"the request did not come in time\\"}"',
    "http-error status 502 content-type application/json string "
    '"{\\"error\\":\\"the gateway was lost while it worked on this\\"}"',
)
_CHOICE = ("use_backend again if may_repeat", "default_backend once")
_CHECK = ("option httpchk GET /v2/health/ready",)
_AGAIN = (
    *_CHECK,
    # Only what is here as a whole can be sent again; it has the time that a gateway gives a body.
    "option http-buffer-request",
    f"timeout http-request {BODY_TIMEOUT_S:g}s",
    "http-reuse always",
    "retry-on conn-failure empty-response 0rtt-rejected",
)
_ONCE = ("http-reuse never", "retry-on conn-failure")
_GRPC = ("no option http-keep-alive", "no option idle-close-on-response")
