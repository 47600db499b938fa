"""One question to a gateway, as its users ask it: with their key, and with errors that say the way out."""

from __future__ import annotations

import os
from typing import Any

import httpx

from sundog.errors import ControlUnavailable, NotFound, ServiceError
from sundog.security.tls import client_context, way_out


class KeyRefused(ServiceError):
    """The gateway asks for a key, or for another one."""


def own_key() -> str | None:
    """The caller's API key, from SUNDOG_API_KEY."""
    return os.environ.get("SUNDOG_API_KEY") or None


def ask(gateway: str, path: str, key: str | None = None) -> Any:
    """A GET at the gateway. ControlUnavailable, NotFound, KeyRefused, ServiceError."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(
            gateway + path, headers=headers, timeout=10, trust_env=False, verify=client_context()
        )
        document = answer.json() if answer.content else {}
    except httpx.HTTPError as error:
        hint = (
            "deploy a service (the first one starts it), or say where it is: "
            "SUNDOG_GATEWAY=http://host:port"
        )
        raise ControlUnavailable(
            f"no gateway at {gateway}: {error}", way_out(error, hint)
        ) from None
    except ValueError:
        raise ServiceError(
            f"{gateway}{path} answers {answer.status_code} and no JSON",
            "is it Sundog's gateway? SUNDOG_GATEWAY=http://host:port",
        ) from None
    if answer.status_code == 200:
        return document
    said = document.get("error") if isinstance(document, dict) else None
    if answer.status_code == 404:
        raise NotFound(said or f"nothing at {path}", "`sundog services` lists them")
    if answer.status_code in (401, 403):
        raise KeyRefused(
            f"{gateway}: {said or answer.status_code}",
            "export SUNDOG_API_KEY=…; `sundog keys create NAME` makes one",
        )
    raise ServiceError(said or f"{gateway}{path} answers {answer.status_code}", "`sundog services`")
