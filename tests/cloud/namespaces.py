"""A cloud on one machine: moto's EC2 on a bridge, and one network namespace with sshd an instance.

Touches only what it made: namespaces, links and a bridge with its own prefix, processes whose ids it
holds, one folder. `close` removes all of it, whatever state it is in.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import boto3

HERE = Path(__file__).resolve().parent
REGION = "us-east-1"
METADATA = "169.254.169.254"
NEEDED = {"ip": "iproute2", "sshd": "openssh-server", "rsync": "rsync", "unshare": "util-linux"}

# Runs as pid 1 of a node: its own /tmp and /root, so that each node has its own Ray session, home
# and token, over the machine's one file system.
NODE = """
set -e
mkdir -p {dir}/tmp {dir}/root {dir}/empty /run/sshd
case {base} in /root/*)  # a Python that lives in the home which each node has its own of
  mkdir -p {dir}{base}; mount --bind {base} {dir}{base};;
esac
mount --rbind {dir}/root /root
mount --bind {dir}/tmp /tmp
hostname {name}
ip link set lo up
ip addr add {metadata}/32 dev lo
{python} {here}/metadata_service.py {metadata} {life} {zone} {dir}/notice.json </dev/null >/dev/null 2>&1 &
exec /usr/sbin/sshd -D -e -f {dir}/sshd_config
"""
SSHD = """
Port 22
ListenAddress {ip}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub {folder}/pushed.pub
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
PidFile {dir}/sshd.pid
"""


def missing() -> str:
    """Why this machine cannot be a cloud, or an empty string."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    hidden = next((h for h in ("/tmp", "/root") if Path(__file__).is_relative_to(h)), "")
    if hidden:
        return f"this checkout is below {hidden}, where each node has its own: put it elsewhere"
    packages = sorted({p for tool, p in NEEDED.items() if not shutil.which(tool, path=path)})
    return f"needs: apt-get install {' '.join(packages)}" if packages else ""


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


class Cloud:
    """`url` is the EC2 endpoint. Instances get a machine within a second of running."""

    def __init__(self) -> None:
        self.tag = uuid.uuid4().hex[:6]
        self.net = f"10.{200 + int(self.tag[:2], 16) % 50}"
        self.folder = Path(f"/var/tmp/sundog-cloud-{self.tag}")
        self.bridge = f"sdb{self.tag}"
        self.nodes: dict[str, subprocess.Popen[str]] = {}
        self._server: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.url = ""

    # Starting.

    def open(self) -> Cloud:
        self.folder.mkdir(parents=True)
        run("ip", "link", "add", self.bridge, "type", "bridge")
        run("ip", "addr", "add", f"{self.net}.0.1/16", "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")
        for name in ("host_key", "key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name))
        self._serve()
        self._account()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        return self

    def _serve(self) -> None:
        port_file = self.folder / "port"
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "scripted_ec2.py"), "--host", f"{self.net}.0.1",
             "--port-file", str(port_file), "--keys", str(self.folder / "pushed.pub")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 90
        while not port_file.exists():
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the EC2 server did not start")
            time.sleep(0.1)
        self.url = f"http://{self.net}.0.1:{port_file.read_text()}"

    def _account(self) -> None:
        """What Terraform makes in a real account: network, roles, key."""
        self.ec2: Any = boto3.client("ec2", region_name=REGION, endpoint_url=self.url)
        iam = boto3.client("iam", region_name=REGION, endpoint_url=self.url)
        vpc = self.ec2.create_vpc(CidrBlock=f"{self.net}.0.0/16")["Vpc"]["VpcId"]
        self.subnets = []
        for i, zone in enumerate(("us-east-1a", "us-east-1b"), 1):
            made = self.ec2.create_subnet(
                VpcId=vpc, CidrBlock=f"{self.net}.{i}.0/24", AvailabilityZone=zone
            )["Subnet"]
            self.subnets.append(made["SubnetId"])
        self.zone_ids = {
            s["SubnetId"]: s["AvailabilityZoneId"]
            for s in self.ec2.describe_subnets(SubnetIds=self.subnets)["Subnets"]
        }
        for name in ("sundog-head-train", "sundog-node-train"):
            iam.create_instance_profile(InstanceProfileName=name)
        public = (self.folder / "key.pub").read_bytes()
        self.ec2.import_key_pair(KeyName="cloud", PublicKeyMaterial=public)
        self.image = self.ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]

    # Following what EC2 says is running.

    def _follow(self) -> None:
        while not self._stop.wait(0.3):
            with contextlib.suppress(Exception):
                self._settle()

    def _settle(self) -> None:
        live = {i["InstanceId"]: i for i in self.instances()}
        for id_ in [i for i in self.nodes if i not in live]:
            self._remove(id_)
        for id_, instance in live.items():
            if id_ not in self.nodes and not self._stop.is_set():
                self._add(id_, instance)

    def _add(self, id_: str, instance: dict[str, Any]) -> None:
        short = id_[-8:]
        space, link, ip = f"sdn{short}", f"sdv{short}", instance["PrivateIpAddress"]
        folder = self.folder / short
        folder.mkdir(exist_ok=True)
        run("ip", "netns", "add", space)
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "link", "set", link, "master", self.bridge, "up")
        inside = ("ip", "-n", space)
        run(*inside, "addr", "add", f"{ip}/16", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")
        # Ray finds its own address with an unsent datagram; without a route that is 127.0.0.1.
        run(*inside, "route", "add", "default", "via", f"{self.net}.0.1")
        (folder / "sshd_config").write_text(SSHD.format(ip=ip, folder=self.folder, dir=folder))
        script = NODE.format(
            dir=folder, name=f"node-{short}", python=sys.executable, base=sys.base_prefix,
            here=HERE, metadata=METADATA,
            life=instance.get("InstanceLifecycle", "on-demand"),
            zone=instance["Placement"]["AvailabilityZone"],
        )  # fmt: skip
        log = (folder / "node.log").open("w")
        self.nodes[id_] = subprocess.Popen(
            ["ip", "netns", "exec", space, "unshare", "--mount", "--uts", "--pid", "--fork",
             "--kill-child", "--mount-proc", "bash", "-c", script],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def _remove(self, id_: str) -> None:
        process, short = self.nodes.pop(id_), id_[-8:]
        process.kill()  # and with it pid 1 of the node, and with that all its processes
        process.wait()
        with contextlib.suppress(subprocess.CalledProcessError):
            run("ip", "netns", "del", f"sdn{short}")

    # What tests do with it.

    def instances(self, **match: str) -> list[dict[str, Any]]:
        """Running instances, as EC2 lists them; `market="spot"` or `pool="a10g"` choose."""
        found = self.ec2.describe_instances(
            Filters=[{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        )
        rows = [i for r in found["Reservations"] for i in r["Instances"]]
        tags = lambda i: {t["Key"]: t["Value"] for t in i.get("Tags", [])}  # noqa: E731
        return [i for i in rows if all(tags(i).get(f"sundog:{k}") == v for k, v in match.items())]

    def script(self, *refuse: dict[str, str], latency_s: float = 0.0) -> None:
        data = json.dumps({"refuse": list(refuse), "latency_s": latency_s}).encode()
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/__script__", data), timeout=10)

    def calls(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.url}/__calls__", timeout=10) as answer:
            return list(json.loads(answer.read()))

    def notice(self, id_: str, action: dict[str, str]) -> None:
        (self.folder / id_[-8:] / "notice.json").write_text(json.dumps(action))

    # Ending.

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=30)
        for id_ in list(self.nodes):
            with contextlib.suppress(OSError):
                self._remove(id_)
        if self._server is not None:
            self._server.terminate()
            self._server.wait()
        with contextlib.suppress(subprocess.CalledProcessError):
            run("ip", "link", "del", self.bridge)
        shutil.rmtree(self.folder, ignore_errors=True)
