"""Telling URLs what happened, at least once: written down first, posted in a thread, crossed off after.

What a killed control had not delivered its successor delivers; nobody waits for a URL meanwhile.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from sundog import hooks
from sundog.clock import Clock
from sundog.store import Lease, Store

FORMAT = 1
AGAIN_S = 60.0
"""After three tries in vain the URL is left alone for so long."""
GIVE_UP_S = 24 * 3600.0
KIND = "webhooks"

log = logging.getLogger("sundog.control")


@dataclass
class Delivery:
    """One attempt. `fault` is "" once the URL took it, None while that is not known."""

    fault: str | None = None


def send(url: str, news: dict[str, Any]) -> Delivery:
    """Begin to post `news`, in a thread."""
    delivery = Delivery()

    def work() -> None:
        delivery.fault = hooks.post(url, news)

    threading.Thread(target=work, name="sundog-webhook", daemon=True).start()
    return delivery


@dataclass
class _Owed:
    url: str
    news: dict[str, Any]
    since_s: float
    delivery: Delivery | None = field(default=None, compare=False)
    again_s: float = 0.0


class Outbox:
    """Thread-safe. `begin` begins one delivery, as `send` does."""

    def __init__(
        self,
        store: Store,
        lease: Lease,
        clock: Clock,
        begin: Callable[[str, dict[str, Any]], Delivery] = send,
    ) -> None:
        self._store = store
        self._lease = lease
        self._clock = clock
        self._begin = begin
        self._lock = threading.Lock()
        self._number, body = store.snapshot(KIND)
        self._owed = {
            name: _Owed(one["url"], one["news"], one["since_s"])
            for name, one in body.get("owed", {}).items()
        }

    def add(self, name: str, url: str, news: dict[str, Any]) -> None:
        """Into the store; told from the next `step` on. The same name again is the same news."""
        with self._lock:
            if name not in self._owed:
                self._owed[name] = _Owed(url, news, self._clock.now_s())
                self._write()

    def step(self) -> None:
        """Begin what is due, and cross off what was taken."""
        now_s = self._clock.now_s()
        with self._lock:
            done = [name for name, owed in self._owed.items() if self._look(owed, now_s)]
            for name in done:
                del self._owed[name]
            if done:
                self._write()

    def _look(self, owed: _Owed, now_s: float) -> bool:
        """Whether there is nothing more to do for it."""
        if owed.delivery is None:
            if now_s >= owed.again_s:
                owed.delivery = self._begin(owed.url, owed.news)
            return False
        fault = owed.delivery.fault
        if not fault:
            return fault is not None
        owed.delivery, owed.again_s = None, now_s + AGAIN_S
        gives_up = now_s - owed.since_s > GIVE_UP_S
        # A webhook's URL may carry its secret in the path or the query.
        log.warning(
            "the webhook at %s was not told of %s, %s: %s", _host(owed.url), owed.news.get("event"),
            "given up after a day" if gives_up else "tried again in a minute", fault,
        )  # fmt: skip
        return gives_up

    def _write(self) -> None:
        self._number += 1
        owed = {
            name: {"url": one.url, "news": one.news, "since_s": one.since_s}
            for name, one in self._owed.items()
        }
        self._store.put_snapshot(self._lease, KIND, self._number, {"format": FORMAT, "owed": owed})


def _host(url: str) -> str:
    try:
        return httpx.URL(url).host
    except httpx.InvalidURL:
        return "an address that is none"
