"""Who can reach an address, and what to say where anybody can and no key is asked for."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def beyond_this_machine(address: str) -> bool:
    """Whether others than this machine can reach `http://host:port`; names count as reachable."""
    host = urlsplit(address if "://" in address else f"http://{address}").hostname or ""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def warning(address: str) -> str:
    return (
        f"ANYBODY WHO REACHES {address} MAY USE EVERY SERVICE: there is no API key yet. Make one "
        "(sundog keys create NAME), and the gateway asks everybody for one, or listen on 127.0.0.1"
    )
