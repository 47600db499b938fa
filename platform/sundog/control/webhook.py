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

from sundog.clock import WALL, Clock
from sundog.store import Lease, Store

FORMAT = 1
TRIES = 3
AGAIN_S = 60.0
"""After three tries in vain the URL is left alone for so long."""
GIVE_UP_S = 24 * 3600.0
KIND = "webhooks"
_TIMEOUT_S = 5.0

log = logging.getLogger("sundog.control")


@dataclass
class Delivery:
    """One attempt. `fault` is "" once the URL took it, None while that is not known."""

    fault: str | None = None


def post(url: str, news: dict[str, Any]) -> Delivery:
    """POST `news` as JSON in a thread, up to three times."""
    delivery = Delivery()
    threading.Thread(
        target=_post, args=(url, news, delivery), name="sundog-webhook", daemon=True
    ).start()
    return delivery


def _post(url: str, news: dict[str, Any], delivery: Delivery) -> None:
    fault = ""
    for attempt in range(TRIES):
        try:
            answer = httpx.post(url, json=news, timeout=_TIMEOUT_S)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            fault = f"{type(error).__name__}: {error}"
        else:
            if answer.status_code < 400:
                delivery.fault = ""
                return
            fault = f"it answers {answer.status_code}"
        if attempt + 1 < TRIES:
            WALL.sleep(2.0**attempt)
    delivery.fault = fault


@dataclass
class _Owed:
    url: str
    news: dict[str, Any]
    since_s: float
    delivery: Delivery | None = field(default=None, compare=False)
    again_s: float = 0.0


class Outbox:
    """Thread-safe. `send` begins one delivery; see `post`."""

    def __init__(
        self,
        store: Store,
        lease: Lease,
        clock: Clock,
        send: Callable[[str, dict[str, Any]], Delivery] = post,
    ) -> None:
        self._store = store
        self._lease = lease
        self._clock = clock
        self._send = send
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
                owed.delivery = self._send(owed.url, owed.news)
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
