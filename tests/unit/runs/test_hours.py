"""Windows on the wall clock: past midnight, over days, through the changes of summer time."""

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sundog.runs.hours import next_open_s, open_at, when
from sundog.spec.hours import DAYS, Hours

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe")


def window(first, last, zone="UTC", days="mon..sun"):
    return Hours.model_validate({"from": first, "to": last, "zone": zone, "days": days})


@st.composite
def windows(draw):
    first = draw(st.integers(0, 1439))
    last = draw(st.integers(1, 1440).filter(lambda m: m % 1440 != first or (first, m) == (0, 1440)))
    days = draw(st.lists(st.sampled_from(DAYS), min_size=1, unique=True))
    return window(first, last, draw(st.sampled_from(ZONES)), days)


MOMENTS = st.integers(
    int(datetime(2025, 1, 1, tzinfo=UTC).timestamp()),
    int(datetime(2028, 1, 1, tzinfo=UTC).timestamp()),
)


def clock(minute: int) -> timedelta:
    return timedelta(minutes=minute)


@given(windows(), MOMENTS)
def test_it_is_open_where_a_wall_clock_lies_between_its_begin_and_its_end(one, at_s):
    local = datetime.fromtimestamp(at_s, ZoneInfo(one.zone)).replace(tzinfo=None)
    spans = []
    for back in (0, 1):
        day = datetime.combine(local.date() - timedelta(days=back), time())
        if DAYS[day.weekday()] in one.days:
            later = clock(1440) if one.to <= one.from_ else clock(0)
            spans.append((day + clock(one.from_), day + clock(one.to) + later))
    assert bool(open_at([one], at_s)) == any(low <= local < high for low, high in spans)


@settings(deadline=None, max_examples=60)
@given(st.lists(windows(), min_size=1, max_size=3), MOMENTS, st.data())
def test_the_next_ones_begin_at_the_first_open_minute(some, at_s, data):
    found = next_open_s(some, at_s)
    assert found >= at_s
    assert open_at(some, found)
    if found > at_s:
        assert found % 60 == 0
        between = data.draw(st.floats(at_s, found - 1))
        assert not open_at(some, between)
        assert when(some, found).endswith(")")


def open_minutes(one: Hours, day: date) -> int:
    noon = datetime.combine(day, time(12), tzinfo=ZoneInfo(one.zone)).timestamp()
    return sum(open_at([one], noon + 60 * n) is not None for n in range(24 * 60))


@pytest.mark.parametrize(
    ("day", "hours"), [(date(2026, 3, 27), 8), (date(2026, 3, 28), 7), (date(2026, 10, 24), 9)]
)
def test_the_night_of_a_change_of_the_clock_is_shorter_or_longer(day, hours):
    assert open_minutes(window("22:00", "06:00", "Europe/Berlin"), day) == hours * 60


def test_a_window_in_the_hour_that_is_left_out_comes_a_week_later():
    one = window("02:10", "02:50", "Europe/Berlin", "sun")
    saturday = datetime(2026, 3, 28, 12, tzinfo=UTC).timestamp()
    assert when([one], next_open_s([one], saturday)) == "Sun 02:10 (Europe/Berlin)"
    assert next_open_s([one], saturday) == datetime(2026, 4, 5, 0, 10, tzinfo=UTC).timestamp()


def test_days_are_those_on_which_a_night_begins():
    one = window("22:00", "06:00", "UTC", "mon..fri")
    saturday_3, sunday_23 = (
        datetime(2026, 11, 21, 3, tzinfo=UTC),
        datetime(2026, 11, 22, 23, tzinfo=UTC),
    )
    assert open_at([one], saturday_3.timestamp())
    assert not open_at([one], sunday_23.timestamp())
    weekend = window("00:00", "24:00", "UTC", ["sat", "sun"])
    assert open_at([one, weekend], sunday_23.timestamp()) == weekend
    friday_noon = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()
    assert when([one, weekend], next_open_s([one, weekend], friday_noon)) == "Fri 22:00 (UTC)"


def test_what_people_write():
    assert window(1320, "6:00") == window("22:00", "06:00")  # YAML reads 22:00 as 1320
    assert window("22:00", "06:00", days="sat..mon").days == ("mon", "sat", "sun")
    assert window("00:00", "24:00").model_dump(mode="json")["to"] == "24:00"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"from": "25:00", "to": "06:00"}, "no time of day"),
        ({"from": "10:61", "to": "11:00"}, "no time of day"),
        ({"from": "22:00", "to": "22:00"}, "the same"),
        ({"from": "24:00", "to": "06:00"}, "begins no day"),
        ({"from": "22:00", "to": "06:00", "zone": "Mars/Base"}, "no time zone"),
        ({"from": "22:00", "to": "06:00", "days": ["mo"]}, "no day"),
        ({"from": "22:00", "to": "06:00", "days": []}, "at least 1"),
        ({"from": "22:00"}, "to"),
    ],
)
def test_what_they_should_not(wrong, says):
    with pytest.raises(ValueError, match=says):
        Hours.model_validate(wrong)
