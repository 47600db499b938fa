"""Lets a colleague's laptop into a cluster: its endpoint, its token, and SSH by cloud identity.

What it writes lies in `~/.sundog/clusters/NAME`, for the person alone. Makes no key anybody shares.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sundog.capacity.cloud_of import make_cloud
from sundog.capacity.commands import DASHBOARD_PORT, TOKEN
from sundog.capacity.tags import POOL_TAG
from sundog.clouds.aws_access import push_key
from sundog.clouds.base import Cloud, Machine
from sundog.errors import ClusterError

SSH_LIMIT_S = 60.0
GATEWAY_PORT = 8420

Push = Callable[[str, str, str, str], None]
Run = Callable[[list[str]], "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class Joined:
    """`env` is for the shell, `tunnel` the command that brings the cluster's ports here."""

    cluster: str
    head: str
    folder: str
    env: dict[str, str]
    tunnel: str
    ssh: str


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=SSH_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer in {SSH_LIMIT_S:.0f} s")


def join(
    config: Mapping[str, Any], *, cloud: Cloud | None = None, push: Push = push_key, run: Run = _run,
    home: Path | None = None,
) -> Joined:  # fmt: skip
    """Join the cluster of a compiled file. ClusterError where its head is not there or not reached."""
    if config["provider"]["sundog"]["cloud"] != "aws":
        raise ClusterError(
            f"{config['cluster_name']} is not on AWS, and joining is written for AWS alone",
            "gcloud compute ssh or az ssh vm reach the head; its token is ~/.ray/auth_token there",
        )
    name, region = config["cluster_name"], config["provider"]["region"]
    head = _head((cloud or make_cloud(config["provider"], name)).machines(name), name)
    user = str(config["auth"]["ssh_user"])
    folder = (home or Path.home()) / ".sundog" / "clusters" / name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = _own_key(folder, run)
    ssh_config = folder / "ssh_config"
    ssh_config.write_text(_ssh_config(name, region, head, user, key, config))
    push(region, head.id, user, key.with_suffix(".pub").read_text().strip())
    token = folder / "token"
    ssh = ["ssh", "-F", str(ssh_config), f"sundog-{name}"]
    said = run([*ssh, f"cat {TOKEN}"])
    if said.returncode or not said.stdout.strip():
        raise ClusterError(
            f"no SSH into {head.id}: {said.stderr.strip()[-300:]}",
            "the spec's ssh must let this network in (or through_ssm), and the image needs "
            "ec2-instance-connect; docs/clusters.md lists the permissions",
        )
    _private(token, said.stdout.strip())
    forwards = [f"-L {p}:127.0.0.1:{p}" for p in (DASHBOARD_PORT, GATEWAY_PORT)]
    env = {
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{DASHBOARD_PORT}",
        "SUNDOG_GATEWAY": f"http://127.0.0.1:{GATEWAY_PORT}",
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token),
    }  # fmt: skip
    root = config["provider"]["sundog"].get("root")
    if root:
        env["SUNDOG_ROOT"] = root
    plain = shlex.join(ssh)
    tunnel = f"{shlex.join(ssh[:-1])} -N {' '.join(forwards)} {ssh[-1]}"
    return Joined(name, head.id, str(folder), env, tunnel, plain)


def _head(machines: list[Machine], name: str) -> Machine:
    found = [m for m in machines if m.tags.get(POOL_TAG) == "head"]
    if len(found) != 1:
        raise ClusterError(
            f"cluster {name!r} has {len(found)} heads in this account",
            "is it up, and are these the right credentials and region? sundog cluster status",
        )
    return found[0]


def _own_key(folder: Path, run: Run) -> Path:
    """A key of this laptop's own, made once."""
    key = folder / "key"
    if not key.is_file():
        done = run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
        if done.returncode:
            raise ClusterError(f"no key was made: {done.stderr.strip()[-200:]}", "install OpenSSH")
    return key


def _private(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    path.chmod(0o600)


def _ssh_config(
    name: str, region: str, head: Machine, user: str, key: Path, config: Mapping[str, Any]
) -> str:
    """Every connection first pushes the key with the caller's identity: access ends with it."""
    through = config["auth"].get("ssh_proxy_command")
    inside = config["provider"].get("use_internal_ips")
    address = head.id if through else (head.internal_ip if inside else head.external_ip)
    address = address or head.internal_ip or head.id
    push = shlex.join(
        [sys.executable, "-m", "sundog.clouds.aws_access", region, head.id, user, f"{key}.pub"]
    )
    lines = [
        f"Match originalhost sundog-{name} exec {_quoted(push)}",
        f"Host sundog-{name}",
        f"  HostName {address}",
        f"  HostKeyAlias {head.id}",
        f"  User {user}",
        f"  IdentityFile {key}",
        "  IdentitiesOnly yes",
        "  StrictHostKeyChecking accept-new",
        f"  UserKnownHostsFile {key.parent / 'known_hosts'}",
        "  ServerAliveInterval 30",
        "  ConnectTimeout 20",
    ]
    if through:
        lines.append(f"  ProxyCommand {through}")
    return "\n".join(lines) + "\n"


def _quoted(command: str) -> str:
    return '"' + command.replace("\\", "\\\\").replace('"', '\\"') + '"'
