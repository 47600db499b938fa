"""Outside its hours a sweep stops its trials, waits without cost, and goes on."""

from datetime import UTC, datetime

import pytest
from test_sweep_book import folder  # noqa: F401
from test_sweep_meter import FOUR, conducted, price
from test_sweep_space import spec

from sundog.clock import ManualClock
from sundog.runs import sweep_book, sweep_space
from sundog.runs.sweep_rest import rest

NIGHTS = {"from": "22:00", "to": "06:00", "zone": "Europe/Berlin", "days": "mon..fri"}
FRIDAY_5_59 = datetime(2026, 11, 20, 4, 59, tzinfo=UTC).timestamp()  # 05:59 in Berlin


def test_the_end_of_its_hours_stops_trials_with_their_state_and_charges_no_more(folder):  # noqa: F811
    clock = ManualClock(FRIDAY_5_59)
    price(folder, "n1", (0.0, 4.0))
    conductor, busy = conducted(folder, clock, {"n1": FOUR}, hours=NIGHTS, trials=3)
    busy.names = [conductor.following().trial_id]
    for _ in range(59):
        clock.advance(1)
        conductor.on_step_end(0, [])
    assert not conductor.stop_all()
    for _ in range(2):
        clock.advance(1)
        conductor.on_step_end(0, [])
    assert conductor.stop_all()
    assert conductor.resting
    assert conductor.following() is None
    busy.names = []
    conductor.close()
    (trial,) = sweep_book.read(folder).trials.values()
    assert (trial.state, trial.why) == ("waiting", "its hours are over")
    spent = trial.usd
    one = spec(hours=NIGHTS, trials=3)
    rest(one, folder, clock)
    assert clock.now_s() == datetime(2026, 11, 20, 21, 0, tzinfo=UTC).timestamp()  # 22:00 in Berlin
    again, busy = conducted(folder, clock, {"n1": FOUR}, hours=NIGHTS, trials=3)
    busy.names = [again.following().trial_id]
    assert busy.names == [trial.name]  # what was cut comes first
    assert again.book.usd == spent == pytest.approx(60 / 3600, rel=0.05)
    assert again.book.elapsed_s <= 62
    clock.advance(1)
    again.on_step_end(0, [])
    assert not again.stop_all()


def test_it_says_until_when_and_then_says_no_more(folder, capsys):  # noqa: F811
    seen = []

    class Watching(ManualClock):
        def sleep(self, seconds):
            seen.append(folder.record())
            super().sleep(3600)

    rest(spec(hours=[NIGHTS]), folder, Watching(FRIDAY_5_59 + 3600))
    text = "outside its hours: paused until Fri 22:00 (Europe/Berlin)"
    assert text in capsys.readouterr().out
    assert seen[0]["message"] == text
    assert seen[0]["paused_until_s"] > FRIDAY_5_59
    assert folder.record()["message"] == ""
    assert folder.record()["paused_until_s"] is None


def test_inside_its_hours_or_without_any_it_does_not_wait(folder, capsys):  # noqa: F811
    clock = ManualClock(FRIDAY_5_59)
    for one in (spec(), spec(hours=NIGHTS)):
        rest(one, folder, clock)
    assert clock.now_s() == FRIDAY_5_59
    assert capsys.readouterr().out == ""


def test_hours_may_change_when_it_is_submitted_again():
    before, after = (sweep_space.identity(spec(hours=h)) for h in ([], [NIGHTS]))
    assert sweep_space.difference(before, after) == ""
