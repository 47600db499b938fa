"""The instance metadata services of AWS, GCP and Azure: where a node is, and notices of its end.

Reads only, with short time limits; whatever is slow, missing or malformed is MetadataUnavailable or
no notice at all, never an exception that ends the caller.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

from sundog.errors import SundogError

TIMEOUT_S = 2.0
LARGEST_ANSWER_BYTES = 65536
# What each cloud promises at least, where a notice names no time of its own.
GCP_NOTICE_S = 30.0
# A machine that boots again, here or on another host, has lost its Ray and all that ran in it.
_AZURE_ENDS = ("Preempt", "Terminate", "Reboot", "Redeploy")


class MetadataUnavailable(SundogError):
    """The service does not answer, refuses, or answers nonsense."""


@dataclass(frozen=True, slots=True)
class Notice:
    """The cloud says that this node will end (or is likelier to). `deadline_s` is Unix time."""

    kind: Literal["interruption", "advice"]
    deadline_s: float | None
    detail: str


class Metadata(Protocol):
    def placement(self) -> tuple[str, str, str]:
        """(market: spot or on-demand, zone, region)"""
        ...

    def notices(self, now_s: float) -> list[Notice]: ...

    def about(self) -> dict[str, str]:
        """market, zone, region, shape, and pool and usd_hour where the node was born with them."""
        ...


class _Http:
    """GET and PUT with a limit on time and size, and no proxy: metadata is link-local."""

    def __init__(self, base: str) -> None:
        self.base = base.rstrip("/")
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())

    def call(self, path: str, headers: Mapping[str, str], method: str = "GET") -> str | None:
        """The answer's text; None for 404, which these services use for 'nothing to say'."""
        request = urllib.request.Request(self.base + path, headers=dict(headers), method=method)
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                return str(answer.read(LARGEST_ANSWER_BYTES).decode("utf-8", "replace"))
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise MetadataUnavailable(f"{path}: HTTP {error.code}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise MetadataUnavailable(f"{path}: {type(error).__name__} {error}") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    # A metadata service has no reason to send anybody elsewhere; one that does is not trusted.
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _parsed(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise MetadataUnavailable(f"not JSON: {text[:80]!r}") from None
    if not isinstance(data, dict):
        raise MetadataUnavailable(f"not an object: {text[:80]!r}")
    return data


def _time_s(text: Any) -> float | None:
    """Unix time of an ISO or RFC-1123 date, or None."""
    if not isinstance(text, str) or not text:
        return None
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        pass
    try:
        at = datetime.strptime(text, "%a, %d %b %Y %H:%M:%S GMT")
    except ValueError:
        return None
    return (at - datetime(1970, 1, 1)).total_seconds()


class AwsMetadata:
    """IMDSv2: a token first, then everything with it."""

    def __init__(self, base: str | None = None) -> None:
        self._http = _Http(base or "http://169.254.169.254")
        self._token = ""

    def _get(self, path: str) -> str | None:
        if not self._token:
            self._renew()
        headers = {"X-aws-ec2-metadata-token": self._token}
        try:
            return self._http.call(f"/latest/meta-data/{path}", headers)
        except MetadataUnavailable as error:
            if "HTTP 401" not in error.message:
                raise
            self._renew()  # tokens end; one new one, then the error stands
            return self._http.call(
                f"/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token}
            )

    def _renew(self) -> None:
        token = self._http.call(
            "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}, "PUT"
        )
        if not token or len(token) > 1024 or not token.isprintable():
            raise MetadataUnavailable("no token")
        self._token = token

    def placement(self) -> tuple[str, str, str]:
        life = (self._get("instance-life-cycle") or "").strip()
        zone = (self._get("placement/availability-zone") or "").strip()
        region = (self._get("placement/region") or "").strip() or zone[:-1]
        return ("spot" if life == "spot" else "on-demand"), zone, region

    def about(self) -> dict[str, str]:
        market, zone, region = self.placement()
        found = {
            "market": market, "zone": zone, "region": region,
            "shape": self._get("instance-type"),
            "pool": self._get("tags/instance/sundog:pool"),
            "usd_hour": self._get("tags/instance/sundog:usd-hour"),
            "cluster": self._get("tags/instance/ray-cluster-name"),
        }  # fmt: skip
        return {k: v.strip() for k, v in found.items() if v}

    def notices(self, now_s: float) -> list[Notice]:
        found = []
        action = _parsed(self._get("spot/instance-action"))
        if action and action.get("action") in ("terminate", "stop", "hibernate"):
            found.append(
                Notice("interruption", _time_s(action.get("time")), f"spot {action['action']}")
            )
        advice = _parsed(self._get("events/recommendations/rebalance"))
        if advice and advice.get("noticeTime"):
            found.append(Notice("advice", None, "rebalance recommendation"))
        return found


class GcpMetadata:
    def __init__(self, base: str | None = None) -> None:
        self._http = _Http(base or "http://metadata.google.internal")

    def _get(self, path: str) -> str:
        text = self._http.call(f"/computeMetadata/v1/{path}", {"Metadata-Flavor": "Google"})
        return (text or "").strip()

    def placement(self) -> tuple[str, str, str]:
        spot = self._get("instance/scheduling/preemptible").upper() == "TRUE"
        zone = self._get("instance/zone").rpartition("/")[2]
        return ("spot" if spot else "on-demand"), zone, zone.rpartition("-")[0]

    def about(self) -> dict[str, str]:
        market, zone, region = self.placement()
        found = {
            "market": market, "zone": zone, "region": region,
            "shape": self._get("instance/machine-type").rpartition("/")[2],
            # Labels cannot be read here; what it was born with is in its attributes as well.
            "pool": self._get("instance/attributes/sundog-pool"),
            "usd_hour": self._get("instance/attributes/sundog-usd-hour"),
            "cluster": self._get("instance/attributes/ray-cluster-name"),
        }  # fmt: skip
        return {k: v for k, v in found.items() if v}

    def notices(self, now_s: float) -> list[Notice]:
        if self._get("instance/preempted").upper() == "TRUE":
            return [Notice("interruption", now_s + GCP_NOTICE_S, "preempted")]
        event = self._get("instance/maintenance-event")
        if event.startswith("TERMINATE"):
            return [Notice("interruption", now_s + 60.0, f"maintenance: {event}")]
        return [Notice("advice", None, f"maintenance: {event}")] if event.startswith("MIGR") else []


class AzureMetadata:
    """Scheduled Events and the instance document."""

    def __init__(self, base: str | None = None) -> None:
        self._http = _Http(base or "http://169.254.169.254")
        self._name = self._shape = ""
        self._tags: dict[str, str] = {}

    def _get(self, path: str) -> dict[str, Any]:
        return _parsed(self._http.call(path, {"Metadata": "true"})) or {}

    def placement(self) -> tuple[str, str, str]:
        compute = self._get("/metadata/instance?api-version=2021-02-01").get("compute") or {}
        if not isinstance(compute, dict):
            raise MetadataUnavailable("no compute document")
        self._name = str(compute.get("name", ""))
        market = "spot" if str(compute.get("priority", "")).lower() == "spot" else "on-demand"
        self._shape = str(compute.get("vmSize", ""))
        tags = compute.get("tagsList")
        self._tags = {
            str(t.get("name")): str(t.get("value"))
            for t in (tags if isinstance(tags, list) else ())
            if isinstance(t, dict)
        }
        return market, str(compute.get("zone", "")), str(compute.get("location", ""))

    def about(self) -> dict[str, str]:
        market, zone, region = self.placement()
        found = {
            "market": market, "zone": zone, "region": region, "shape": self._shape,
            "pool": self._tags.get("sundog:pool"), "usd_hour": self._tags.get("sundog:usd-hour"),
            "cluster": self._tags.get("ray-cluster-name"),
        }  # fmt: skip
        return {k: v for k, v in found.items() if v}

    def notices(self, now_s: float) -> list[Notice]:
        if not self._name:
            self.placement()
        events = self._get("/metadata/scheduledevents?api-version=2020-07-01").get("Events") or []
        found = []
        for event in events if isinstance(events, list) else ():
            whom = event.get("Resources") if isinstance(event, dict) else None
            if not isinstance(whom, list) or self._name not in whom:
                continue  # the document lists the whole scale set: other nodes' ends are not ours
            kind = event.get("EventType")
            if kind in _AZURE_ENDS:
                found.append(Notice("interruption", _time_s(event.get("NotBefore")), str(kind)))
        return found


SERVICES: dict[str, Callable[[str | None], Metadata]] = {
    "aws": AwsMetadata, "gcp": GcpMetadata, "azure": AzureMetadata
}  # fmt: skip
