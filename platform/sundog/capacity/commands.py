"""The shell commands that compiled clusters run on their nodes. Text only; runs nothing."""

from __future__ import annotations

import shlex

from sundog.spec.cluster import ClusterSpec

WHEEL_DIR = "~/.sundog/wheel"
LOCAL_WHEEL_DIR = "./cluster-configs/.wheel"
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
        local = LOCAL_WHEEL_DIR if spec.install.wheel == "auto" else spec.install.wheel
        mounts[WHEEL_DIR] = local
    return mounts


def exports(spec: ClusterSpec) -> str:
    """`export` statements for every command: Ray's token mode, the root, and the spec's own."""
    env = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    if spec.root:
        env["SUNDOG_ROOT"] = spec.root
    if spec.cloud.aws and spec.cloud.aws.metadata:
        env["SUNDOG_METADATA_URL"] = spec.cloud.aws.metadata
    env.update(spec.env)
    # Double quotes, so that a spec may write PATH: /opt/venv/bin:$PATH.
    return " ".join(f'export {k}="{v}";' for k, v in env.items())


def setup(spec: ClusterSpec) -> list[str]:
    out = [f"chmod 600 {TOKEN}"]
    if spec.install.url:
        out.append(f"{exports(spec)} pip install {shlex.quote(spec.install.url)}")
    elif spec.install.wheel != "none":
        alone = "" if spec.install.ray else "--no-deps --no-index "
        out.append(f"{exports(spec)} pip install {alone}--force-reinstall {WHEEL_DIR}/*.whl")
    # Loud and early: without the package the head could never launch a worker.
    out.append(
        f"{exports(spec)} python3 -c 'import sundog.capacity.provider' || "
        "{ echo 'sundog is not importable on this node: no node would ever be launched' >&2; "
        "exit 1; }"
    )
    return out + [f"{exports(spec)} {command}" for command in spec.setup]


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
    out = [f"{exports(spec)} ray stop", start]
    if cloud in ("aws", "gcp", "azure"):
        out.append(_agent(spec, cloud, f"$RAY_HEAD_IP:{RAY_PORT}"))
    return out
