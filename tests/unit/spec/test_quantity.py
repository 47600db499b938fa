"""Quantities: what people write becomes one plain unit, anything else a hint."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sundog.spec.quantity import (
    Range,
    parse_duration_s,
    parse_memory_bytes,
    parse_share,
    parse_usd,
    parse_usd_hour,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("5min", 300),
        ("50ms", 0.05),
        ("2 h", 7200),
        ("1d", 86400),
        (3, 3),
        ("1_000s", 1000),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["5", "5 m", "-3s", True, None, "1h30", [], "s"])
def test_not_durations(text: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration_s(text)


def test_memory_money_and_shares() -> None:
    assert parse_memory_bytes("1.5GiB") == 1610612736
    assert parse_memory_bytes("2GB") == 2 * 10**9
    assert parse_usd("$0.25") == 0.25
    assert parse_usd_hour("$60/h") == 60
    assert parse_share("25%") == 0.25
    for bad in ("101%", -1, "a lot", True):
        with pytest.raises(ValueError, match="is not a share"):
            parse_share(bad)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_range_reads_what_it_writes(a: int, b: int) -> None:
    given_range = Range(min(a, b), max(a, b))
    assert Range.parse(str(given_range)) == given_range
    assert given_range.low in given_range
    assert given_range.high in given_range
    assert given_range.low - 1 not in given_range


def test_open_ranges() -> None:
    assert Range.parse("4..").high is None
    assert 10**9 in Range.parse("4..")
    assert Range.parse(4).fixed
    for bad in ("..4", "a..b", -1, True, "4...8", 2.5):
        with pytest.raises(ValueError):
            Range.parse(bad)
