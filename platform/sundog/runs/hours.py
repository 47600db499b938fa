"""Whether it is one of the hours in which something may run, and when the next ones begin.

Pure: wall clocks and their changes to summer time are the time zone's. A moment is inside when its
wall clock is, so a night that loses an hour is shorter and one that gains it longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from sundog.spec.hours import DAYS, Hours

_MINUTE_S = 60
# A window may miss its day where summer time leaves its hour out: then it comes a week later.
_FAR_MIN = 15 * 24 * 60


def open_at(hours: Sequence[Hours], at_s: float) -> Hours | None:
    """The first of `hours` that Unix time `at_s` lies in."""
    return next((one for one in hours if _inside(one, at_s)), None)


def next_open_s(hours: Sequence[Hours], at_s: float) -> float:
    """The Unix time from `at_s` on at which one of `hours` is open: `at_s` itself, or a minute."""
    if open_at(hours, at_s):
        return at_s
    first = (int(at_s // _MINUTE_S) + 1) * _MINUTE_S
    for minute in range(_FAR_MIN):
        found = first + minute * _MINUTE_S
        if open_at(hours, found):
            return float(found)
    raise ValueError(f"none of {hours} ever begins")


def when(hours: Sequence[Hours], at_s: float) -> str:
    """Such as `Mon 22:00 (Europe/Berlin)`: the moment on the clock of the window that it opens."""
    zone = (open_at(hours, at_s) or hours[0]).zone
    return f"{datetime.fromtimestamp(at_s, ZoneInfo(zone)):%a %H:%M} ({zone})"


def _inside(one: Hours, at_s: float) -> bool:
    local = datetime.fromtimestamp(at_s, ZoneInfo(one.zone))
    minute = local.hour * 60 + local.minute
    today = DAYS[local.weekday()] in one.days
    if one.from_ < one.to:
        return today and one.from_ <= minute < one.to
    yesterday = DAYS[(local.date() - timedelta(days=1)).weekday()] in one.days
    return (today and minute >= one.from_) or (yesterday and minute < one.to)
