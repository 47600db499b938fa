"""Telling a URL that something ended: in a thread, a few tries, and never in anybody's way."""

from __future__ import annotations

import logging
import threading
from typing import Any

import httpx

from sundog.clock import WALL

TRIES = 3
_TIMEOUT_S = 5.0

log = logging.getLogger("sundog.control")


def tell(url: str, news: dict[str, Any]) -> threading.Thread:
    """POST `news` as JSON. What is not taken after three tries is logged and given up."""
    thread = threading.Thread(target=_post, args=(url, news), name="sundog-webhook", daemon=True)
    thread.start()
    return thread


def _post(url: str, news: dict[str, Any]) -> None:
    fault = ""
    for attempt in range(TRIES):
        try:
            answer = httpx.post(url, json=news, timeout=_TIMEOUT_S)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            fault = f"{type(error).__name__}: {error}"
        else:
            if answer.status_code < 400:
                return
            fault = f"it answers {answer.status_code}"
        WALL.sleep(2.0**attempt)
    # A webhook's URL may carry its secret in the path or the query.
    host = httpx.URL(url).host if fault else ""
    log.warning("the webhook at %s was not told of %s: %s", host, news.get("event"), fault)
