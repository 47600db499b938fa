"""A cluster spec compiled to what plain `ray up` or `kubectl apply` takes, as text with a header.

Pure: file in, text out, the same text for the same spec, prices and Ray. Launches nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sundog.capacity import compile_aws, compile_kuberay, compile_stock, reach
from sundog.capacity.check import Bought, check, price_days, read_spec
from sundog.market.prices import PriceBook


@dataclass(frozen=True)
class Compiled:
    """`text` is what to write; `documents` is the same as data (several only for KubeRay)."""

    text: str
    documents: list[dict[str, Any]]
    bought: Bought
    warnings: list[str] = field(default_factory=list)


def compile_cluster(
    path: str | Path, *, plain: bool = False, book: PriceBook | None = None, name: str | None = None
) -> Compiled:
    """The spec at `path` as a cluster file.

    `plain` leaves our node provider out: the stock one of Ray, which never falls back to on-demand.
    `name` is what the header calls the spec (else its path). SpecError names file, line and fix.
    """
    bought = check(read_spec(path), book)
    spec, warnings = bought.spec, reach.warnings(bought, plain)
    cloud = spec.cloud.name
    if cloud == "aws":
        documents = [compile_aws.compile_aws(bought, plain)]
    elif cloud == "kuberay":
        documents = compile_kuberay.compile_kuberay(bought)
    else:
        documents = [compile_stock.COMPILERS[cloud](bought, plain)]
    header = _header(bought, name or str(path), plain, warnings)
    body = "---\n".join(
        yaml.dump(d, sort_keys=False, width=240, Dumper=_Dumper, default_flow_style=False)
        for d in documents
    )
    return Compiled(header + body, documents, bought, warnings)


class _Dumper(yaml.SafeDumper):
    """No anchors: a person who edits one place must not change another. An offer is one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_mapping(
        self, tag: str, mapping: Any, flow_style: bool | None = None
    ) -> yaml.MappingNode:
        one_line = isinstance(mapping, dict) and "quota" in mapping and "shape" in mapping
        return super().represent_mapping(tag, mapping, True if one_line else flow_style)


def _header(bought: Bought, name: str, plain: bool, warnings: list[str]) -> str:
    digest = hashlib.sha256(bought.source.text.encode()).hexdigest()[:12]
    flag = " --plain" if plain else ""
    lines = [
        f"Compiled from {name} (sha256 {digest}…).",
        f"Do not edit; change the spec, then: sundog cluster compile {name}{flag}",
    ]
    offers = [o for p in bought.pools.values() for o in p.offers]
    if offers:
        days = price_days(offers)
        if days["oldest"]:
            between = f"{days['oldest']} to {days['newest']}"
            lines.append(f"Prices of {between}; `sundog cluster plan` shows their age today.")
        if days["undated"]:
            lines.append(
                f"{days['undated']} prices of the snapshot carry no day: their age is unknown."
            )
        if days["unpriced"]:
            lines.append(
                f"{days['unpriced']} of {len(offers)} offers have no price in the snapshot."
            )
    lines += [f"Note: {w}." for w in warnings]
    return "".join(f"# {line}\n" for line in lines)


def compiled_name(spec_path: str | Path) -> Path:
    """Where the compiled file of a spec lies: `specs/x.yaml` -> `x.yaml` beside the folder.

    Elsewhere `x.yaml` -> `x.ray.yaml`: a spec is never written over.
    """
    path = Path(spec_path)
    if path.parent.name == "specs":
        return path.parent.parent / path.name
    if path.absolute().parent.name == "specs":  # named from inside the folder
        return Path("..") / path.name
    return path.with_name(f"{path.stem}.ray.yaml")
