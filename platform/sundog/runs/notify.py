"""Tells a webhook how a run ended.

Best effort: a hook that does not answer costs a line in the log, never the run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from sundog.clock import WALL, Clock
from sundog.errors import RunBusy, SundogError
from sundog.hooks import post
from sundog.runs.driver import say
from sundog.storage.runs import ENDED, RunFolder

_TOLD = (
    "run_id", "kind", "state", "message", "step", "steps", "loss", "metrics", "model", "data",
    "goodput", "node_hours", "usd", "started_s", "ended_s",
)  # fmt: skip


@contextmanager
def notified(folder: RunFolder, webhook: str | None, clock: Clock = WALL) -> Iterator[None]:
    """POST the run's record to `webhook` (an address, or `env:NAME` that holds it) when it ends.

    A driver that is killed cannot tell; the one that resumes the run does.
    """
    try:
        yield
    except RunBusy:
        raise  # the run goes on, driven by somebody else
    except BaseException:
        _tell(folder, webhook, clock)
        raise
    _tell(folder, webhook, clock)


def message(record: Mapping[str, Any]) -> dict[str, Any]:
    """What is sent: `event` is run.finished, run.failed or run.cancelled, the rest as in the record."""
    told = {key: record.get(key) for key in _TOLD}
    line = f"{record.get('run_id')} {record.get('state')}"
    if record.get("message"):
        line += f": {record['message']}"
    # `text` is what chat services show of a hook's body.
    return {"event": f"run.{record.get('state')}", "text": line, **told}


def _tell(folder: RunFolder, webhook: str | None, clock: Clock) -> None:
    if webhook is None:
        return
    with suppress(SundogError):
        record = folder.record()
        if record.get("state") not in ENDED:
            return
        address = os.environ.get(webhook[4:], "") if webhook.startswith("env:") else webhook
        why = post(address, message(record), clock) if address else f"{webhook} is not set"
        if why:
            say(folder, f"the webhook was not told that {folder.run_id} {record['state']}: {why}")
