"""News for a URL: posted as JSON, a few tries. Whom to tell, and what of it is kept, others decide."""

from __future__ import annotations

from typing import Any

from sundog.clock import WALL, Clock

TRIES = 3
_TIMEOUT_S = 5.0


def post(url: str, news: dict[str, Any], clock: Clock = WALL) -> str:
    """ "" once the URL took it, else why not. Never names the URL, which may hold a secret."""
    import httpx

    fault = ""
    for attempt in range(TRIES):
        if attempt:
            clock.sleep(2.0 ** (attempt - 1))
        try:
            answer = httpx.post(url, json=news, timeout=_TIMEOUT_S)
        except httpx.InvalidURL:
            return "it is no address"
        except httpx.HTTPError as error:
            fault = type(error).__name__
        else:
            if answer.is_success:
                return ""
            fault = f"it answered {answer.status_code}"
    return fault
