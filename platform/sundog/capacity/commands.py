"""The shell commands that compiled clusters run on their nodes. Text only; runs nothing."""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath

from sundog.spec.cluster import ClusterSpec

WHEEL_DIR = "~/.sundog/wheel"
LOCAL_WHEEL_DIR = "./cluster-configs/.wheel"
VENV = "$HOME/.sundog/venv"
PYTHON = "3.11"
UV_DIR = "$HOME/.sundog/uv"
UV = "0.13.9"
TOKEN = "~/.ray/auth_token"
RAY_PORT = 6379
AGENT_PAUSE_S = 5
# Outside 10002-19999, the range Ray gives its workers' ports.
DASHBOARD_PORT = 8265


def mounts_wheel(spec: ClusterSpec) -> bool:
    """Whether the compiled file mounts the wheel that is built beside it."""
    built = spec.install.url is None and spec.install.wheel == "auto"
    return built and spec.cloud.name != "kuberay"


def file_mounts(spec: ClusterSpec) -> dict[str, str]:
    """Ray's token on every node, and the wheel unless a URL or the image brings Sundog."""
    mounts = {TOKEN: TOKEN}
    if spec.install.url is None and spec.install.wheel != "none":
        local = spec.install.wheel
        if local == "auto":
            mounts[WHEEL_DIR] = LOCAL_WHEEL_DIR
        else:
            mounts[f"{WHEEL_DIR}/{PurePosixPath(local).name}"] = local
    return mounts


def own_python(spec: ClusterSpec) -> bool:
    """Whether the nodes run Sundog in a Python of its own, rather than in the image's."""
    brought = spec.install.url is not None or spec.install.wheel != "none"
    return brought and spec.install.python == "venv" and spec.cloud.name != "kuberay"


def exports(spec: ClusterSpec) -> str:
    """`export` statements for every command: Ray's token mode, the root, and the spec's own."""
    env = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    if spec.root:
        env["SUNDOG_ROOT"] = spec.root
    if spec.cloud.aws and spec.cloud.aws.metadata:
        env["SUNDOG_METADATA_URL"] = spec.cloud.aws.metadata
    env.update(spec.env)
    said = list(env.items())
    if own_python(spec):
        # After the spec's own, so that every `python3`, `pip` and `ray` is the one that has Sundog.
        said.append(("PATH", f"{VENV}/bin:$PATH"))
    # Double quotes, so that a spec may write PATH: /opt/venv/bin:$PATH.
    return " ".join(f'export {k}="{v}";' for k, v in said)


def setup(spec: ClusterSpec) -> list[str]:
    """Python where it is ours, Sundog, a look whether it can be imported, and the spec's own.

    Each may run again: `ray up` on a cluster that is up repeats them.
    """
    out = [f"chmod 600 {TOKEN}"]
    install = spec.install
    # The newest: rsync leaves the wheel of an earlier version where it was.
    what = f'"$(ls -t {WHEEL_DIR}/*.whl | head -n 1)"'
    if install.url:
        what = shlex.quote(install.url)
    if own_python(spec):
        out += [f"{exports(spec)} {command}" for command in (*_make_python(), _into_venv(what))]
    elif install.url:
        out.append(f"{exports(spec)} pip install {what}")
    elif install.wheel != "none":
        alone = "" if install.ray else "--no-deps --no-index "
        out.append(f"{exports(spec)} pip install {alone}--force-reinstall {what}")
    # Loud and early: without the package the head could never launch a worker.
    out.append(
        f"{exports(spec)} python3 -c 'import sundog.capacity.provider' || "
        "{ echo 'sundog is not importable on this node: no node would ever be launched' >&2; "
        "exit 1; }"
    )
    return out + [f"{exports(spec)} {command}" for command in spec.setup]


def _make_python() -> list[str]:
    """uv, and a Python of ours by it: images bring 3.10 or 3.12, and all nodes must have one Python.

    With pip where the image has it (`--target`, because Debian's pip refuses to touch the system's
    packages), else with uv's own installer. uv takes Python from the image if it has that version.
    """
    uv = f'"{UV_DIR}/bin/uv"'
    return [
        f'test -x {uv} || python3 -m pip install -q --upgrade --target "{UV_DIR}" uv=={UV} || '
        f"curl -LsSf https://astral.sh/uv/{UV}/install.sh | "
        f'env UV_UNMANAGED_INSTALL="{UV_DIR}/bin" sh',
        f'test -x "{VENV}/bin/python3" || {uv} venv -q --seed --python {PYTHON} "{VENV}"',
    ]


def _into_venv(what: str) -> str:
    # torch is the index's normal one, which drives GPUs. Only Sundog is installed anew each time:
    # its version may be the same while its files are not.
    return f'"{UV_DIR}/bin/uv" pip install -q --python "{VENV}" --reinstall-package sundog {what}'


def _identity(cloud: str) -> str:
    return f'eval "$(python3 -m sundog.capacity.identity {cloud})";'


def _agent(spec: ClusterSpec, cloud: str, gcs: str) -> str:
    # Started again whenever it dies; it ends for good with 0 (another one is at work here) or 2
    # (asked wrongly). setsid and closed streams, or the SSH session would wait for it for ever.
    agent = (
        f"until python3 -m sundog.capacity.preemption {cloud} --gcs {gcs}; "
        f"do [ $? -eq 2 ] && break; sleep {AGENT_PAUSE_S}; done"
    )
    return (
        f"{exports(spec)} mkdir -p ~/.sundog; "
        f'setsid nohup bash -c "{agent.replace("$?", chr(92) + "$?")}" '
        "</dev/null >>~/.sundog/preemption.log 2>&1 &"
    )


def start_head(spec: ClusterSpec, cloud: str, elastic: bool) -> list[str]:
    gone = "the head cannot import its node provider; nothing will be launched"
    checked = (
        [
            f"{exports(spec)} python3 -c 'import sundog.capacity.provider' || "
            f"{{ echo '{gone}' >&2; exit 1; }}"
        ]
        if elastic
        else []
    )
    return [
        f"{exports(spec)} ray stop",
        *checked,
        f"ulimit -n 65536; {exports(spec)} {_identity(cloud)} ray start --head --port={RAY_PORT} "
        f"--object-manager-port=8076 --dashboard-host=127.0.0.1 --dashboard-port={DASHBOARD_PORT} "
        "--autoscaling-config=~/ray_bootstrap_config.yaml",
    ]


def start_worker(spec: ClusterSpec, cloud: str) -> list[str]:
    start = (
        f"ulimit -n 65536; {exports(spec)} {_identity(cloud)} "
        f"ray start --address=$RAY_HEAD_IP:{RAY_PORT} --object-manager-port=8076"
    )
    if cloud == "onprem" and len(spec.pools) == 1:
        # Ray's provider for own machines knows no node types, which carry labels elsewhere.
        [(name, pool)] = spec.pools.items()
        labels = {"sundog.pool": name} | pool.labels
        start += f" --labels={shlex.quote(','.join(f'{k}={v}' for k, v in labels.items()))}"
    out = [f"{exports(spec)} ray stop", start]
    if cloud in ("aws", "gcp", "azure"):
        out.append(_agent(spec, cloud, f"$RAY_HEAD_IP:{RAY_PORT}"))
    return out
