"""Prints the shell exports that tell Ray where a node is and how it was bought.

Run on a node just before `ray start`. A metadata service that does not answer costs a label, never
the node: it then says so on stderr and exports what it knows.
"""

from __future__ import annotations

import os
import re
import shlex
import sys

from sundog.capacity.metadata import SERVICES, Metadata, MetadataUnavailable

_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,63}")


def exports(service: Metadata) -> dict[str, str]:
    """Ray's environment for market type, zone and region; only values fit for a label."""
    market, zone, region = service.placement()
    found = {"RAY_NODE_MARKET_TYPE": market, "RAY_NODE_ZONE": zone, "RAY_NODE_REGION": region}
    return {k: v for k, v in found.items() if v and _PLAIN.fullmatch(v)}


def main(argv: list[str]) -> int:
    make = SERVICES.get(argv[0] if argv else "")
    if make is None:
        return 0  # on-prem and containers: nothing was bought, so there is nothing to say
    try:
        found = exports(make(os.environ.get("SUNDOG_METADATA_URL")))
    except MetadataUnavailable as error:
        print(f"sundog: no market labels on this node: {error}", file=sys.stderr)
        return 0
    for key, value in found.items():
        print(f"export {key}={shlex.quote(value)};")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
