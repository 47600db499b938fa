"""The hours in which something may run, as people write them: from 22:00 to 06:00 on some days."""

from __future__ import annotations

import re
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from sundog.spec.base import Spec

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MIN = 24 * 60


def _parse_minute(value: Any) -> int:
    # YAML reads an unquoted 22:00 as 22 * 60: the minutes that are meant.
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _DAY_MIN:
        return value
    match = re.fullmatch(r"(\d{1,2}):(\d\d)", str(value).strip())
    if match and int(match[2]) < 60 and (found := int(match[1]) * 60 + int(match[2])) <= _DAY_MIN:
        return found
    raise ValueError(f'{value!r} is no time of day; write "22:00"')


def minute_text(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


def _parse_days(value: Any) -> tuple[str, ...]:
    """`mon`, `mon..fri` (which may pass Sunday: `sat..mon`), or a list of these."""
    found: list[str] = []
    for part in value if isinstance(value, list | tuple) else [value]:
        ends = [end.strip().lower() for end in str(part).split("..")]
        if len(ends) > 2 or any(end not in DAYS for end in ends):
            raise ValueError(f"{part!r} is no day; write {', '.join(DAYS)} or mon..fri")
        first, last = DAYS.index(ends[0]), DAYS.index(ends[-1])
        found += [DAYS[(first + n) % 7] for n in range((last - first) % 7 + 1)]
    return tuple(day for day in DAYS if day in found)


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"{name!r} is no time zone that this machine knows; write Europe/Berlin or UTC "
            "(a machine without any needs its package tzdata)"
        ) from None
    return name


Minute = Annotated[
    int,
    BeforeValidator(_parse_minute),
    PlainSerializer(minute_text),
    WithJsonSchema({"type": "string", "examples": ["22:00"]}),
]
"""Minutes since midnight on the wall clock, 0 to 1440."""

_Days = Annotated[
    tuple[str, ...],
    BeforeValidator(_parse_days),
    WithJsonSchema({"type": ["string", "array"], "examples": ["mon..fri", ["sat", "sun"]]}),
]


class Hours(Spec):
    """A stretch of each of its days on the wall clock of `zone`; past midnight when `to` is earlier."""

    from_: Minute = Field(alias="from", description="when it begins")
    to: Minute = Field(description="when it ends; 24:00 is midnight")
    zone: Annotated[str, AfterValidator(_known_zone)] = Field(
        "UTC", description="whose clock", examples=["Europe/Berlin"]
    )
    days: _Days = Field(DAYS, min_length=1, description="the days on which it begins")

    @model_validator(mode="after")
    def _some_time(self) -> Hours:
        if self.from_ % _DAY_MIN == self.to % _DAY_MIN and not self._whole_day:
            raise ValueError('hours: from and to are the same; a whole day is "00:00" to "24:00"')
        if self.from_ == _DAY_MIN:
            raise ValueError("hours.from: 24:00 begins no day; write 00:00")
        return self

    @property
    def _whole_day(self) -> bool:
        return (self.from_, self.to) == (0, _DAY_MIN)


def _as_list(value: Any) -> Any:
    if value is None:
        return ()
    return [value] if isinstance(value, dict | Hours) else value


AnyHours = Annotated[
    tuple[Hours, ...], BeforeValidator(_as_list, json_schema_input_type=Hours | tuple[Hours, ...])
]
"""Several windows; one may stand without its list."""
