"""Which fields of a spec do not reach its target: an error where that would be unsafe, else a warning.

One table. A field that is not in it reaches every target.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sundog.capacity.check import Bought, Source
from sundog.clouds.aws_efa import EFA_CARDS
from sundog.errors import SpecError, SundogError
from sundog.spec.load import Location

STOCK = ("aws --plain", "gcp --plain", "azure --plain")
BOUGHT = ("aws", "gcp", "azure", *STOCK)
AWS = ("aws", "aws --plain")
GCP, AZURE = ("gcp", "gcp --plain"), ("azure", "azure --plain")
OWN = ("onprem", "kuberay")
NOT_AWS = (*GCP, *AZURE, *OWN)


@dataclass(frozen=True)
class Unreached:
    """`field` as in the file, `*` for each pool. `fix` makes it an error."""

    field: str
    targets: tuple[str, ...]
    why: str
    fix: str = ""


_OWN_RULES = "name a network whose firewall you made, and leave it out here"
TABLE = (
    # Who gets in: somebody who believes in a closed door must not get an open one.
    Unreached("ssh.open_to", GCP, "no firewall rule is made on GCP: the network's own decide", _OWN_RULES),
    Unreached(
        "ssh.open_to", AZURE, "Ray's template for Azure opens SSH to every address whatever is said here",
        "close it in the resource group's network security group, and leave it out here",
    ),
    Unreached("ssh.open_to", OWN, "nothing is opened or closed there"),
    Unreached("ssh.through_ssm", NOT_AWS, "Session Manager is AWS's", "leave it out"),
    Unreached(
        "network.subnets", (*GCP, *AZURE), "the nodes would lie in the network that Ray chooses",
        "leave it out; on Azure Ray makes a network, on GCP it takes the default one",
    ),
    Unreached(
        "network.security_group", (*GCP, *AZURE), "the rules of another network would hold", "leave it out"
    ),
    Unreached("network.subnets", OWN, "the machines are where they are"),
    Unreached("network.security_group", OWN, "the machines are where they are"),
    Unreached("network.internal", OWN, "the machines have the addresses that they have"),
    Unreached("ssh.key_name", NOT_AWS, "key pairs with names are AWS's; Ray makes a key"),
    Unreached("ssh.private_key", ("kuberay",), "pods have no SSH"),
    # Money.
    Unreached("budget", (*STOCK, "kuberay"), "only `plan` reads it; nothing enforces it while it runs"),
    Unreached("budget", ("onprem",), "nothing is bought"),
    Unreached("pools.*.max_price", ("gcp --plain", "kuberay"), "it chose the offers, once"),
    Unreached("pools.*.max_price", ("onprem",), "nothing is bought"),
    Unreached("pools.*.on_demand_floor", (*STOCK, "kuberay"), "only nodes of the lower end are"),
    Unreached("pools.*.on_demand_floor", ("onprem",), "nothing is bought"),
    Unreached("pools.*.hand_back", (*STOCK, *OWN), "on-demand nodes are not handed back"),
    Unreached("pools.*.rungs", (*STOCK, "onprem"), "one shape a market, and nothing falls back"),
    Unreached("pools.*.market", ("onprem",), "nothing is bought"),
    # Where nodes lie and what they have.
    Unreached("pools.*.placement_group", NOT_AWS, "placement groups are made on AWS only"),
    Unreached(
        "pools.*.placement_group", ("aws --plain",),
        "nobody makes it: aws ec2 create-placement-group --strategy cluster --group-name …",
    ),
    Unreached("pools.*.network", NOT_AWS, "EFA is AWS's"),
    Unreached("pools.*.one_zone", ("aws --plain", "onprem"), "nothing keeps the gang in one zone"),
    Unreached("cloud.aws.zones", ("aws --plain",), "Ray takes the zones of the subnets"),
    Unreached("cloud.gcp.more_zones", ("gcp --plain",), "Ray knows one zone"),
    Unreached("pools.*.disk", OWN, "the machines have the disks that they have"),
    Unreached("head.disk", OWN, "the machines have the disks that they have"),
    Unreached("pools.*.disk.kind", AZURE, "Ray's template for Azure has one kind of disk"),
    Unreached("head.disk.kind", AZURE, "Ray's template for Azure has one kind of disk"),
    Unreached("image.root_device", NOT_AWS, "only AWS asks for it"),
    # What runs.
    Unreached("setup", ("kuberay",), "pods start from their image: put it into the Dockerfile"),
    Unreached("install", ("kuberay",), "pods start from their image: put it into the Dockerfile"),
    Unreached("pools.*.idle", ("onprem",), "Ray knows one idle time there, the cluster's"),
    Unreached("pools.*.need.gpu", ("onprem",), "Ray finds out what the machines have"),
    Unreached("pools.*.need.cpus", ("onprem",), "Ray finds out what the machines have"),
    Unreached("pools.*.need.memory", ("onprem",), "Ray finds out what the machines have"),
)  # fmt: skip


def target(bought: Bought, plain: bool) -> str:
    name = bought.spec.cloud.name
    return f"{name} --plain" if plain and f"{name} --plain" in STOCK else name


def warnings(bought: Bought, plain: bool) -> list[str]:
    """What the person should know before it runs. SpecError where going on would be unsafe."""
    source, to = bought.source, target(bought, plain)
    _fit_to_aws(bought, plain)
    out: list[str] = []
    for row in TABLE:
        if to not in row.targets:
            continue
        for at, value in _said(source, row.field):
            if value == _default(source, at):
                continue
            if row.fix:
                raise source.fault(at, f"does not reach {to}: {row.why}", row.fix)
            out.append(f"{'.'.join(map(str, at))} does not reach {to}: {row.why}")
    return _unproven(bought, to) + out + _particular(bought, plain, to)


def _said(source: Source, field: str) -> Iterator[tuple[Location, Any]]:
    """Where the file itself says this field, with its value; nothing where it leaves it out."""
    _, star, rest = field.partition("*.")
    names = list(source.spec.pools) if star else [""]
    for name in names:
        at: Location = ("pools", name, *rest.split(".")) if star else tuple(field.split("."))
        if at in source.lines:
            yield at, _value(source.spec, at)


def _value(spec: Any, at: Location) -> Any:
    for part in at:
        spec = spec[part] if isinstance(spec, dict) else getattr(spec, str(part))
    return spec


def _default(source: Source, at: Location) -> Any:
    parent = _value(source.spec, at[:-1])
    return type(parent).model_fields[str(at[-1])].get_default(call_default_factory=True)


def _fit_to_aws(bought: Bought, plain: bool) -> None:
    spec, source = bought.spec, bought.source
    if spec.cloud.aws is None:
        return
    if spec.network.security_group and spec.ssh.open_to:
        raise source.fault(
            ("ssh", "open_to"), "an existing network.security_group has its own rules",
            "open SSH in that group (Terraform: ssh_open_to), or leave one of the two out",
        )  # fmt: skip
    if plain and not spec.network.security_group:
        raise SpecError(
            f"{source.path}: --plain on AWS without network.security_group: Ray's own "
            "provider would make a group with SSH open to 0.0.0.0/0",
            "name one that you made, such as the one of cluster-configs/terraform/aws",
        )


def _unproven(bought: Bought, to: str) -> list[str]:
    """What was never run, and what no provider does there."""
    spec, out = bought.spec, []
    if to in (*GCP, *AZURE):
        out.append("validated, never run: no account was at hand to run it on")
    if to == "kuberay":
        out.append("validated, never run: one worker group per rung, and no fallback between them")
        for name, pool in spec.pools.items():
            groups = len({(o.market, o.shape) for o in bought.pools[name].offers})
            if groups > 1:
                most = (pool.nodes.high or 0) * groups
                out.append(
                    f"pools.{name}.nodes: {pool.nodes} holds for each of its {groups} worker groups: "
                    f"together they may come to {most} nodes"
                )
    if to in STOCK:
        out.append("Ray's own provider: a refused spot request is repeated, never sent elsewhere")
    return out


def _particular(bought: Bought, plain: bool, to: str) -> list[str]:
    """What depends on more than one field."""
    spec, out = bought.spec, []
    if not bought.region_known:
        out.append(f"{spec.cloud.region!r} is no region that this Sundog knows: is it spelt right?")
    if "0.0.0.0/0" in spec.ssh.open_to or "::/0" in spec.ssh.open_to:
        out.append("SSH is open to the whole internet, as ssh.open_to says")
    if to in AZURE:
        out.append("SSH is open to every address: Ray's template for Azure says so, no field does")
    if to in GCP:
        out.append("who may use SSH is up to the firewall of the project's default network")
    if to in BOUGHT and not spec.root:
        out.append(
            "no root: launches and prices are written to a file on the head that goes with it, "
            "`sundog cost` sees nothing, and agents write no record of their nodes"
        )
    elif spec.root and root_fault(spec.root):
        out.append(f"root: {spec.root} is no storage root yet, and `up` will refuse it")
    for name, pool in spec.pools.items():
        cards = max((EFA_CARDS.get(o.shape, 1) for o in bought.pools[name].offers), default=1)
        if to in AWS and pool.network == "efa" and cards > 1 and not spec.network.internal:
            out.append(
                f"pools.{name}.network: AWS gives no public address to a node with {cards} interfaces: "
                "its subnets need a NAT gateway, and endpoints for S3 and SSM save its cost"
            )
        if (
            to in AZURE
            and pool.one_zone
            and not str(spec.cloud.azure and spec.cloud.azure.zone).isdigit()
        ):
            out.append(f'pools.{name}.one_zone does not reach {to}: write cloud.azure.zone: "1"')
        if to == "aws --plain" and pool.network == "efa" and not spec.network.subnets:
            out.append(
                f"pools.{name}.network: efa needs network.subnets with --plain, and is left out"
            )
        if (
            to in GCP
            and ("pools", name, "disk", "kind") in bought.source.lines
            and not gcp_disk(pool.disk.kind)
        ):
            out.append(
                f"pools.{name}.disk.kind: {pool.disk.kind} is no disk of GCP; pd-balanced is taken"
            )
    if to == "onprem" and len(spec.pools) > 1:
        out.append(
            "several pools of own machines are one to Ray: no node carries its pool's name or labels, "
            "and `sundog cluster probe` finds none; write a spec for each"
        )
    return out


def root_fault(root: str) -> str:
    """Why this is not the address of a storage root, else "". Asks nobody."""
    from sundog.storage.root import open_root

    try:
        open_root(root)
    except SundogError as error:
        return error.message
    return ""


def gcp_disk(kind: str) -> bool:
    """Whether GCP has this kind of disk."""
    return kind.startswith("pd-") or "hyperdisk" in kind
