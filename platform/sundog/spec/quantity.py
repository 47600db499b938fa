"""Quantities as people write them: 5min, 16GiB, $60/h, 2..8, 25%.

Each type parses at the edge into one plain unit, named by the type, and refuses anything else.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, GetCoreSchemaHandler, PlainSerializer, WithJsonSchema
from pydantic_core import core_schema

GIB = 2**30
_NUMBER = r"(\d[\d_]*(?:\.\d+)?)"
_TIME_UNITS = {
    "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0,
}  # fmt: skip
_MEMORY_UNITS = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": GIB, "TiB": 2**40,
}  # fmt: skip


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def parse_duration_s(value: Any) -> float:
    """Seconds from 90, '90s', '5min', '50ms', '2h', '1d'."""
    if _is_number(value) and value >= 0:
        return float(value)
    match = re.fullmatch(_NUMBER + r"\s*(us|ms|s|sec|min|h|d)", str(value).strip())
    if not match:
        raise ValueError(f"{value!r} is not a duration; write 90s, 5min, 2h, 1d or 50ms")
    return float(match[1].replace("_", "")) * _TIME_UNITS[match[2]]


def parse_memory_bytes(value: Any) -> int:
    """Bytes from 1024, '16GiB', '500MB'."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = re.fullmatch(_NUMBER + r"\s*([KMGT]i?B|B)", str(value).strip())
    if not match:
        raise ValueError(f"{value!r} is not a size; write 512MiB, 16GiB or 2TB")
    return int(float(match[1].replace("_", "")) * _MEMORY_UNITS[match[2]])


def parse_usd(value: Any) -> float:
    """Dollars from 5, '$5', '$0.25'."""
    if _is_number(value) and value >= 0:
        return float(value)
    match = re.fullmatch(r"\$?\s*" + _NUMBER, str(value).strip())
    if not match:
        raise ValueError(f"{value!r} is not an amount; write $5 or 5.00")
    return float(match[1].replace("_", ""))


def parse_usd_hour(value: Any) -> float:
    """Dollars an hour from 60, '$60/h'."""
    text = str(value).strip()
    try:
        return parse_usd(value if _is_number(value) else text.removesuffix("/h").strip())
    except ValueError:
        raise ValueError(f"{value!r} is not a price by the hour; write $60/h") from None


def parse_share(value: Any) -> float:
    """A share in 0..1 from 0.25 or '25%'."""
    text = str(value).strip()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = -1.0
    if isinstance(value, bool) or not 0 <= share <= 1:
        raise ValueError(f"{value!r} is not a share; write 25% or 0.25")
    return share


DurationS = Annotated[
    float,
    BeforeValidator(parse_duration_s),
    WithJsonSchema({"type": ["number", "string"], "examples": ["5min", "90s", "50ms"]}),
]
MemoryBytes = Annotated[
    int,
    BeforeValidator(parse_memory_bytes),
    WithJsonSchema({"type": ["integer", "string"], "examples": ["16GiB"]}),
]
Usd = Annotated[
    float,
    BeforeValidator(parse_usd),
    WithJsonSchema({"type": ["number", "string"], "examples": ["$5"]}),
]
UsdHour = Annotated[
    float,
    BeforeValidator(parse_usd_hour),
    WithJsonSchema({"type": ["number", "string"], "examples": ["$60/h"]}),
]
Share = Annotated[
    float,
    BeforeValidator(parse_share),
    WithJsonSchema({"type": ["number", "string"], "examples": ["25%"]}),
]


class Range:
    """A closed range of whole numbers: `2..8`, `4..` (no upper end), or `4` for exactly four."""

    __slots__ = ("high", "low")

    def __init__(self, low: int, high: int | None) -> None:
        self.low = low
        self.high = high

    @classmethod
    def parse(cls, value: Any) -> Range:
        if isinstance(value, Range):
            return value
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(value, value)
        match = re.fullmatch(r"(\d+)(?:\s*(\.\.)\s*(\d+)?)?", str(value).strip())
        if not match:
            raise ValueError(f"{value!r} is not a range; write 2..8, 4.. or 4")
        low = int(match[1])
        high = int(match[3]) if match[3] else (None if match[2] else low)
        if high is not None and high < low:
            raise ValueError(f"{value!r} runs backwards; write {high}..{low}")
        return cls(low, high)

    @property
    def fixed(self) -> bool:
        return self.low == self.high

    def clamp(self, value: int) -> int:
        value = max(value, self.low)
        return value if self.high is None else min(value, self.high)

    def __contains__(self, value: int) -> bool:
        return self.clamp(value) == value

    def __str__(self) -> str:
        if self.fixed:
            return str(self.low)
        return f"{self.low}..{'' if self.high is None else self.high}"

    def __repr__(self) -> str:
        return f"Range({self})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Range) and (self.low, self.high) == (other.low, other.high)

    def __hash__(self) -> int:
        return hash((self.low, self.high))

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": ["integer", "string"], "examples": ["2..8", 4]}


def parse_interval(value: Any) -> Any:
    """`'auto'`, an int of steps, or a normalised duration: `200 steps` is 200, `10min` is `600s`."""
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    try:
        match = re.fullmatch(r"(\d[\d_]*)\s*steps?", str(value).strip())
        return int(match[1].replace("_", "")) if match else f"{parse_duration_s(value):g}s"
    except ValueError:
        raise ValueError(f"{value!r} is not an interval; write auto, 200 steps or 10min") from None


Interval = Annotated[
    str | int,
    BeforeValidator(parse_interval),
    PlainSerializer(lambda v: v),
    WithJsonSchema({"type": ["integer", "string"], "examples": ["auto", "200 steps", "10min"]}),
]
"""`'auto'`, an int of steps, or a normalised duration like `'600s'`."""


def _micro_batch(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError(f"{value!r} is not a number of rows; write 32 or auto")


def _warmup(value: Any) -> int | float:
    if _is_number(value) and 0 <= value < 1:
        return float(value)
    match = re.fullmatch(r"(\d[\d_]*)(?:\s*samples?)?", str(value).strip())
    if match:
        return int(match[1].replace("_", ""))
    try:
        return parse_share(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a warm-up; write 5% or 10_000 samples") from None


MicroBatch = Annotated[
    int | str,
    BeforeValidator(_micro_batch),
    WithJsonSchema({"type": ["integer", "string"], "examples": [32, "auto"]}),
]
Warmup = Annotated[
    int | float,
    BeforeValidator(_warmup),
    WithJsonSchema({"type": ["number", "string"], "examples": ["5%", "10_000 samples"]}),
]
"""A share in 0..1 as a float, or a whole number of samples."""
