"""What `sundog doctor` looks at. Each finding says what is, and the fix where something is not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from sundog.cli.connection import endpoints, storage_root
from sundog.errors import SundogError
from sundog.security.tls import client_context

_RAY = "2.60.0"


@dataclass(frozen=True)
class Finding:
    name: str
    level: str  # ok | warn | fail
    detail: str
    fix: str = ""


def examine(root: str | None) -> list[Finding]:
    looks: list[Callable[[], Finding]] = [
        _python, _ray, _torch, _cores, _memory, _shared_memory, _temporary_disk,
        lambda: _storage(root), _cluster, _gateway, _token, _cloud_account,
    ]  # fmt: skip
    return [look() for look in looks] + _extras()


def _python() -> Finding:
    # An older Python does not get this far: the package refuses to install on it.
    return Finding("python", "ok", sys.version.split()[0])


def _ray() -> Finding:
    version = importlib.metadata.version("ray")
    if version != _RAY:
        return Finding(
            "ray", "fail", f"{version}; the private parts of Ray are pinned to {_RAY}",
            f"pip install 'ray[default,serve,train,tune]=={_RAY}'",
        )  # fmt: skip
    return Finding("ray", "ok", version)


def _torch() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return Finding(
            "torch", "ok", f"{torch.__version__} · {torch.cuda.device_count()} × {', '.join(names)}"
        )
    return Finding("torch", "ok", f"{torch.__version__} · no GPU on this machine: gloo on CPU")


def _cores() -> Finding:
    count = len(os.sched_getaffinity(0))
    if count < 2:
        return Finding(
            "cores", "warn", f"{count}", "two workers need two cores to be faster than one"
        )
    return Finding("cores", "ok", f"{count}")


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _memory() -> Finding:
    free = psutil.virtual_memory().available
    if free < 6 * 2**30:
        return Finding(
            "memory", "warn", f"{_gib(free)} free", "the demo takes up to 6 GiB: close something"
        )
    return Finding("memory", "ok", f"{_gib(free)} free")


def _shared_memory() -> Finding:
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    if free < 512 * 2**20:
        return Finding(
            "/dev/shm", "warn", f"{_gib(free)} free; Ray's object store falls back to disk, slowly",
            "mount a larger one: mount -o remount,size=2g /dev/shm (in Docker: --shm-size=2g)",
        )  # fmt: skip
    return Finding("/dev/shm", "ok", f"{_gib(free)} free")


def _temporary_disk() -> Finding:
    usage = shutil.disk_usage("/tmp")
    # Ray stops taking work when its temp dir's disk is over 95% full.
    if usage.free / usage.total < 0.06 or usage.free < 2 * 2**30:
        return Finding(
            "disk of /tmp",
            "fail",
            f"{_gib(usage.free)} free",
            "Ray refuses work on a full disk: free some",
        )
    return Finding("disk of /tmp", "ok", f"{_gib(usage.free)} free")


def _storage(root: str | None) -> Finding:
    from sundog.errors import AlreadyExists

    try:
        where = storage_root(root)
        key = f"doctor/{os.getpid()}"
        where.create(key, b"one")
        try:
            where.create(key, b"two")
            return Finding(
                "storage root", "fail", f"{where.url}: takes a conditional write twice",
                "this store cannot keep two registrars apart: use S3 itself, or one that has If-None-Match",
            )  # fmt: skip
        except AlreadyExists:
            return Finding("storage root", "ok", f"{where.url}: reads, writes, conditional writes")
        finally:
            where.delete(key)
    except SundogError as error:
        return Finding("storage root", "warn" if root is None else "fail", error.message, error.fix)


def _cluster() -> Finding:
    found = endpoints()
    if found is None:
        return Finding("ray cluster", "warn", "none known here", "start one: sundog up")
    headers = {}
    if found.token_path and Path(found.token_path).is_file():
        headers = {"Authorization": f"Bearer {Path(found.token_path).read_text().strip()}"}
    try:
        code = httpx.get(
            f"{found.dashboard}/api/jobs/", headers=headers, timeout=5, trust_env=False
        ).status_code
    except httpx.HTTPError as error:
        return Finding(
            "ray cluster", "fail", f"{found.dashboard}: {error}", "is RAY_API_SERVER_ADDRESS right?"
        )
    if code == 401:
        return Finding("ray cluster", "fail", f"{found.dashboard} refuses the token",
                       "RAY_AUTH_TOKEN_PATH must name the cluster's token file")  # fmt: skip
    return Finding(
        "ray cluster", "ok" if code == 200 else "fail", f"{found.dashboard} answers {code}"
    )


def _gateway() -> Finding:
    found = endpoints()
    if found is None:
        return Finding("gateway", "warn", "none known here", "the first `sundog deploy` starts it")
    try:
        code = httpx.get(
            f"{found.gateway}/v2/health/live", timeout=5, trust_env=False, verify=client_context()
        ).status_code
    except httpx.HTTPError:
        return Finding(
            "gateway", "warn", f"nothing at {found.gateway}", "the first `sundog deploy` starts it"
        )
    return Finding("gateway", "ok" if code == 200 else "warn", f"{found.gateway} answers {code}")


def _token() -> Finding:
    found = endpoints()
    path = (
        Path(found.token_path)
        if found and found.token_path
        else Path.home() / ".ray" / "auth_token"
    )
    if not path.is_file():
        return Finding("ray token", "ok", f"none at {path}; `sundog up` makes one")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return Finding(
            "ray token",
            "fail",
            f"{path} has mode {mode:o}: others can read it",
            f"chmod 600 {path}",
        )
    return Finding("ray token", "ok", f"{path}, mode {mode:o}")


def _cloud_account() -> Finding:
    import boto3
    import botocore.exceptions

    try:
        session = boto3.Session()
    except botocore.exceptions.ProfileNotFound as error:
        return Finding("aws account", "fail", str(error),
                       "AWS_PROFILE names it: aws configure list-profiles")  # fmt: skip
    if session.get_credentials() is None:
        return Finding("aws account", "warn", "no credentials; one machine needs none",
                       "for clusters and s3:// roots: aws configure sso, or AWS_PROFILE")  # fmt: skip
    if not session.region_name:
        return Finding("aws account", "ok", "credentials found, region not set: quotas not asked")
    return _quotas(session.region_name)


def _quotas(region: str) -> Finding:
    """The account's GPU quotas: a new account's are zero, and then no GPU node ever starts."""
    from sundog.clouds.aws_prices import allowed_vcpus

    try:
        found = allowed_vcpus(region)
    except SundogError as error:
        return Finding("aws account", "warn", f"credentials found; quotas of {region}: {error.message}",
                       error.fix or "they need servicequotas:GetServiceQuota")  # fmt: skip
    said = ", ".join(f"{family} {market} {n}" for (family, market), n in sorted(found.items()))
    gpus = [n for (family, _), n in found.items() if family != "Standard"]
    if not any(gpus):
        return Finding("aws account", "warn", f"{region}, vCPUs allowed: {said}",
                       "no GPU node can start: `sundog cluster plan SPEC` says what to ask for")  # fmt: skip
    return Finding("aws account", "ok", f"{region}, vCPUs allowed: {said}")


def _extras() -> list[Finding]:
    wanted = {"optuna": "sweeps", "sklearn": "demo", "psycopg": "postgres", "scipy": "sim"}
    return [
        Finding(
            f"extra {extra}", "warn", f"{module} is not installed", f"pip install 'sundog[{extra}]'"
        )
        for module, extra in wanted.items()
        if importlib.util.find_spec(module) is None
    ]
