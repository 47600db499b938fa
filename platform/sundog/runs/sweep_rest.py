"""The pause of a sweep outside its hours: no trial runs, nothing is charged, the driver waits.

What stops before and goes on afterwards is the driver's; a driver that dies in here loses nothing.
"""

from __future__ import annotations

from sundog.clock import WALL, Clock
from sundog.runs.driver import say
from sundog.runs.hours import next_open_s, when
from sundog.spec.sweep import SweepSpec
from sundog.storage.runs import RunFolder

_LOOK_S = 1.0


def rest(spec: SweepSpec, folder: RunFolder, clock: Clock = WALL) -> None:
    """Returns in the sweep's hours: at once, or when they begin."""
    if not spec.hours:
        return
    opens_s = next_open_s(spec.hours, clock.now_s())
    if opens_s <= clock.now_s():
        return
    text = f"outside its hours: paused until {when(spec.hours, opens_s)}"
    say(folder, f"{text}; no trial runs and nothing is charged")
    folder.update(message=text, paused_until_s=opens_s)
    while (left_s := opens_s - clock.now_s()) > 0:
        clock.sleep(min(left_s, _LOOK_S))
    folder.update(message="", paused_until_s=None)
    say(folder, "its hours have begun")
