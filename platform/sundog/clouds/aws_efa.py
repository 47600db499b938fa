"""AWS: Elastic Fabric Adapters, one on each network card of a shape that has them."""

from __future__ import annotations

from typing import Any

# Shapes of the catalogue with EFA, and how many network cards take one (`describe-instance-types`,
# `NetworkInfo.EfaInfo.MaximumEfaInterfaces`).
EFA_CARDS = {
    "p6-b200.48xlarge": 8, "p5.48xlarge": 32, "p5en.48xlarge": 16, "p5.4xlarge": 1,
    "p4d.24xlarge": 4, "p4de.24xlarge": 4, "p3dn.24xlarge": 1,
    "g7e.48xlarge": 4, "g7e.24xlarge": 2, "g7e.12xlarge": 1, "g7e.8xlarge": 1,
    "g6e.48xlarge": 4, "g6e.24xlarge": 2, "g6e.16xlarge": 1, "g6e.12xlarge": 1, "g6e.8xlarge": 1,
    "g6.48xlarge": 1, "g6.24xlarge": 1, "g6.16xlarge": 1, "g6.12xlarge": 1, "g6.8xlarge": 1,
    "gr6.8xlarge": 1,
    "g5.48xlarge": 1, "g5.24xlarge": 1, "g5.16xlarge": 1, "g5.12xlarge": 1, "g5.8xlarge": 1,
    "g4dn.metal": 1, "g4dn.16xlarge": 1, "g4dn.12xlarge": 1, "g4dn.8xlarge": 1,
    "c6i.32xlarge": 1, "c6i.metal": 1, "c7i.48xlarge": 1, "c7i.metal-48xl": 1,
    "m6a.48xlarge": 1, "m6a.metal": 1, "m6i.32xlarge": 1, "m6i.metal": 1, "m7a.48xlarge": 1,
    "m7a.metal-48xl": 1, "m7i.48xlarge": 1, "m7i.metal-48xl": 1, "r6i.32xlarge": 1, "r6i.metal": 1,
    "r7i.48xlarge": 1, "r7i.metal-48xl": 1,
}  # fmt: skip


def efa_interfaces(shape: str, subnet: str, groups: list[str]) -> list[dict[str, Any]]:
    """The interfaces of a launch: the first carries IP too, the others (`efa-only`) need no address."""
    return [
        {
            "NetworkCardIndex": card, "DeviceIndex": 1 if card else 0,
            "InterfaceType": "efa-only" if card else "efa", "SubnetId": subnet, "Groups": groups,
            "DeleteOnTermination": True,
        }
        for card in range(EFA_CARDS.get(shape, 1))
    ]  # fmt: skip
