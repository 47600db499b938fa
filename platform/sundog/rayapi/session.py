"""Where this node's Ray session keeps its logs and sockets, and which GPUs Ray gave this process.

Private part of Ray: the node object of the process. Where Ray is not connected there is no folder.
"""

from __future__ import annotations

import ray


def folder() -> str | None:
    """The session's own folder on this node, which goes when the session does; None outside Ray."""
    try:
        return str(ray._private.worker._global_node.get_session_dir_path())
    except AttributeError:
        return None


def logs_dir() -> str | None:
    """The folder of Ray's own logs on this node; None outside Ray."""
    try:
        return str(ray._private.worker._global_node.get_logs_dir_path())
    except AttributeError:
        return None


def sockets_dir() -> str | None:
    """The folder of Ray's own sockets on this node; None outside Ray."""
    try:
        return str(ray._private.worker._global_node.get_sockets_dir_path())
    except AttributeError:
        return None


def node() -> tuple[str, str]:
    """(id, IP address) of this node."""
    return ray.get_runtime_context().get_node_id(), str(ray.util.get_node_ip_address())


def gpus() -> list[str]:
    """The GPUs that Ray reserved for this actor; none where it asked for none."""
    ids: dict[str, list[str]] = ray.get_runtime_context().get_accelerator_ids()
    return list(ids.get("GPU", ()))
