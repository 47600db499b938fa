"""Where things are, for a command typed in a shell: the environment, else this folder's `sundog up`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sundog.errors import ClusterError, SpecError, first_line
from sundog.rayapi.local import Endpoints, read_record

if TYPE_CHECKING:
    from sundog.control.client import ControlClient
    from sundog.storage.root import Root

RootOption = Annotated[
    str | None,
    typer.Option(
        "--root", help="Storage root; else SUNDOG_ROOT, else that of `sundog up` in this folder."
    ),
]

DEFAULT_GATEWAY = "http://127.0.0.1:8420"


def home() -> Path:
    """The folder that remembers this machine's Sundog: SUNDOG_HOME, else ./.sundog."""
    return Path(os.environ.get("SUNDOG_HOME", ".sundog")).absolute()


def endpoints() -> Endpoints | None:
    """What the environment says, else what runs here; None where neither knows a cluster."""
    dashboard = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_DASHBOARD_ADDRESS")
    record = read_record(home())
    if dashboard:
        return Endpoints(
            gcs="", dashboard=dashboard.rstrip("/"),
            gateway=os.environ.get("SUNDOG_GATEWAY", DEFAULT_GATEWAY),
            root=os.environ.get("SUNDOG_ROOT", ""),
            token_path=os.environ.get("RAY_AUTH_TOKEN_PATH", ""),
        )  # fmt: skip
    return record


def cluster() -> Endpoints:
    """The cluster to talk to, its variables set for Ray's clients. Raises ClusterError without one."""
    found = endpoints()
    if found is None:
        raise ClusterError(
            "no Ray cluster to talk to: RAY_API_SERVER_ADDRESS is not set and nothing was started "
            f"from {Path.cwd()}",
            'start one with `sundog up`, then: eval "$(sundog env)"',
        )
    os.environ.update({k: v for k, v in found.env().items() if v})
    return found


def gateway() -> str:
    found = endpoints()
    return (
        os.environ.get("SUNDOG_GATEWAY") or (found and found.gateway) or DEFAULT_GATEWAY
    ).rstrip("/")


def control() -> ControlClient:
    """Control, over Ray: inside a job, or beside a Ray that runs on this machine."""
    import ray

    from sundog.control.client import ControlClient

    found = endpoints()
    if found is not None:
        os.environ.update({k: v for k, v in found.env().items() if v})
    if not os.environ.get("RAY_ADDRESS"):
        raise ClusterError(
            "this is kept by the cluster's control, and no Ray runs on this machine",
            "ask it from inside: ray job submit -- python -m sundog …",
        )
    try:
        ray.init(
            address=os.environ["RAY_ADDRESS"], logging_level=logging.ERROR, log_to_driver=False
        )
    except (ConnectionError, RuntimeError) as error:
        raise ClusterError(
            f"no Ray at {os.environ['RAY_ADDRESS']}: {first_line(error)}",
            'is it up? eval "$(sundog env)" in its folder',
        ) from None
    return ControlClient()


def storage_root(explicit: str | None) -> Root:
    """The storage root of a command: --root, SUNDOG_ROOT, the running Sundog's, ./.sundog's."""
    from sundog.storage.root import open_root

    if explicit or os.environ.get("SUNDOG_ROOT"):
        return open_root(explicit or os.environ["SUNDOG_ROOT"])
    found = endpoints()
    if found and found.root:
        return open_root(found.root)
    local = home() / "root"
    if local.is_dir():
        return open_root(local.as_uri())
    raise SpecError(
        "no storage root: neither --root nor SUNDOG_ROOT says where, and nothing was started "
        f"from {Path.cwd()}",
        "export SUNDOG_ROOT=file:///somewhere or s3://bucket/prefix, or run `sundog up`",
    )
