"""Time becomes money at the price of the moment; what has no price is never guessed nor forgotten."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_sweep_space import spec

from sundog.clock import ManualClock
from sundog.runs.sweep_book import Book, Journal, Trial, key, read, spent_key
from sundog.runs.sweep_conduct import Conductor, objectives
from sundog.runs.sweep_meter import Meter
from sundog.runs.sweep_purse import Purse, Rates, charge, forecast
from sundog.runs.sweep_search import searcher
from sundog.storage.root import open_root
from sundog.storage.runs import new_run

FOUR = {"CPU": 4.0}


@pytest.fixture
def folder(tmp_path):
    return new_run(open_root(tmp_path.as_uri()), "s", "s-1")


def price(folder, node, *prices):
    record = {"format": 1, "prices": [list(p) for p in prices]}
    folder.root.write(f"nodes/{node}.json", json.dumps(record).encode())


def metered(folder, clock, nodes, fallback=None, trials=("a", "b")):
    book = Book()
    book.trials = {name: Trial(name) for name in trials}
    rates = Rates(folder.root, {"CPU": 1.0}, fallback, clock)
    return book, Meter(book, rates, lambda: nodes)


def test_a_running_node_s_new_price_is_charged_from_its_hour_on(folder):
    clock = ManualClock(1000.0)
    price(folder, "n1", (0.0, 4.0), (1000.0 + 3600, 8.0))
    book, meter = metered(folder, clock, {"n1": FOUR})
    meter.placed("a", ["n1"])
    for _ in range(4):  # two hours in quarters of two looks each
        clock.advance(1800)
        meter.charge(["a"], 1800, 1)
    # A quarter of the node: 0.5 h at $4, then 1.5 h at $8 (a look pays the price that it sees).
    assert book.trials["a"].usd == pytest.approx(0.25 * (0.5 * 4 + 1.5 * 8))
    price(folder, "n1", (0.0, 4.0), (4600.0, 8.0), (clock.now_s(), 1.0))  # spot fell meanwhile
    clock.advance(3600)
    before = book.trials["a"].usd
    meter.charge(["a"], 3600, 1)
    assert book.trials["a"].usd - before == pytest.approx(0.25 * 1.0)


def test_a_node_without_a_price_takes_nothing_from_what_was_spent(folder):
    clock = ManualClock(1000.0)
    price(folder, "n1", (0.0, 4.0))
    book, meter = metered(folder, clock, {"n1": FOUR, "n2": FOUR})
    meter.charge(["a"], 3600, 1)  # nobody knows where it is: the dearest that has a price
    assert book.trials["a"].usd == pytest.approx(1.0)
    meter.placed("a", ["n2"])
    meter.placed("b", ["n1"])
    for _ in range(2):
        clock.advance(1800)
        meter.charge(["a", "b"], 1800, 1)
    assert book.trials["a"].usd == pytest.approx(1.0)
    assert book.trials["a"].unpriced_hours == pytest.approx(0.25)
    assert book.trials["b"].whole_usd == pytest.approx(1.0)
    assert book.usd == pytest.approx(2.0)
    assert meter.without_price(60) == ["n2"]
    # For the cap it counts at the dearest price known; reports and forecasts do not guess.
    assert Purse(spec(max_usd=3), book, lambda: meter.dearest_usd_hour).empty() is not None
    assert Purse(spec(max_usd=3.1), book, lambda: meter.dearest_usd_hour).empty() is None
    book.trials["a"].state = "finished"
    assert forecast(book, 2).usd is None
    book.trials["a"].value = 0.5
    assert objectives(book.trials["a"], spec(also={"usd": "min"})) is None
    # Its record comes late: what was used is paid for.
    price(folder, "n2", (0.0, 2.0))
    clock.advance(61)
    meter.charge([], 0, 1)
    assert book.trials["a"].whole_usd == pytest.approx(1.0 + 0.25 * 2.0)
    assert meter.without_price(0) == []


@given(
    st.lists(
        st.tuples(st.floats(0, 1e4), st.floats(0.01, 1), st.one_of(st.none(), st.floats(0, 100)))
    )
)
def test_dollars_never_fall_and_hours_are_whole(parts):
    trial, paid = Trial("t"), 0.0
    for seconds, share, usd_hour in parts:
        charge(trial, seconds, [(share, usd_hour)])
        assert (trial.usd or 0.0) >= paid
        paid = trial.usd or 0.0
    unpriced = sum(s / 3600 * share for s, share, usd in parts if usd is None)
    assert trial.unpriced_hours == pytest.approx(unpriced)
    assert trial.node_hours == pytest.approx(sum(s / 3600 * share for s, share, _ in parts))


def test_usd_node_hour_pays_for_what_an_earlier_driver_could_not(folder):
    book, _ = metered(folder, ManualClock(), {})
    charge(book.trials["a"], 3600, [(0.5, None)])
    Meter(book, Rates(folder.root, {}, 0.2), lambda: {})
    assert book.trials["a"].whole_usd == pytest.approx(0.1)


class Busy:
    """A scheduler's account of who runs."""

    workers, room, stopped = 1, True, {}

    def __init__(self, conductor):
        self.names, self.inner = [], None
        conductor.watched = self

    def statuses(self):
        return dict.fromkeys(self.names, "RUNNING")

    def holds_fresh(self):
        return False


def conducted(folder, clock, nodes, **changes):
    one = spec(**changes)
    rates = Rates(folder.root, {"CPU": 1.0}, one.usd_node_hour, clock)
    journal = Journal(folder, one.mode)
    conductor = Conductor(one, folder, journal, searcher(one), rates, lambda: nodes, clock)
    return conductor, Busy(conductor)


def test_a_budget_ends_where_a_node_stays_without_a_price(folder, capsys):
    clock = ManualClock(1000.0)
    price(folder, "n1", (0.0, 4.0))
    nodes = {"n1": FOUR, "n2": FOUR}
    conductor, busy = conducted(folder, clock, nodes, max_usd=100)
    busy.names = [conductor.following().trial_id]
    conductor.meter.placed(busy.names[0], ["n2"])
    for _ in range(100):
        clock.advance(1)
        conductor.on_step_end(0, [])
        if conductor.stop_all():
            break
    assert "n2" in conductor.ending
    assert "usd_node_hour" in conductor.ending
    conductor.close()
    book = read(folder)
    (trial,) = book.trials.values()
    assert trial.state == "waiting"  # it goes on when the spec says what the node is worth
    assert trial.unpriced_hours == pytest.approx(60 / 3600 / 4, rel=0.1)


def test_without_a_budget_it_goes_on_and_says_what_has_no_price(folder, capsys):
    clock = ManualClock(1000.0)
    price(folder, "n1", (0.0, 4.0))
    conductor, busy = conducted(folder, clock, {"n1": FOUR, "n2": FOUR})
    busy.names = [conductor.following().trial_id, conductor.following().trial_id]
    for name, node in zip(busy.names, ("n1", "n2"), strict=True):
        conductor.meter.placed(name, [node])
    for _ in range(100):
        clock.advance(1)
        conductor.on_step_end(0, [])
    assert not conductor.stop_all()
    said = capsys.readouterr().out
    assert said.count("price of node n2 is not known") == 1
    conductor.close()
    assert folder.record()["usd"] == pytest.approx(100 / 3600)
    assert folder.record()["unpriced_node_hours"] == pytest.approx(100 / 3600 / 4)


def test_a_killed_driver_forgets_two_seconds_of_spending_whatever_the_root(folder):
    """On S3 lines are gathered for up to ten seconds: totals and ends do not wait for that."""
    clock = ManualClock(1000.0)
    price(folder, "n1", (0.0, 4.0))
    conductor, busy = conducted(folder, clock, {"n1": FOUR})
    held = Gathers(folder.root, key(folder))
    conductor._journal._file = held
    conductor._journal._file.append(folder.root.read(key(folder)))
    busy.names = [conductor.following().trial_id, conductor.following().trial_id]
    for step in range(1, 101):
        clock.advance(0.5)
        conductor.on_step_end(0, [])
        spent = read(folder)
        if step >= 4:
            assert conductor.book.elapsed_s - spent.elapsed_s <= 2.0
            assert sum(t.node_s for t in spent.trials.values()) >= 2 * (0.5 * step - 2.0)
    conductor._end(conductor.book.trials[busy.names[0]], "finished", "all its steps")
    assert read(folder).trials[busy.names[0]].ended
    assert held.parts < 60  # no more than were asked for, far fewer than lines


def test_what_a_paused_trial_cost_is_written_once(folder):
    """A thousand of them must not be written again every two seconds."""
    clock = ManualClock(1000.0)
    price(folder, "n1", (0.0, 4.0))
    conductor, busy = conducted(folder, clock, {"n1": FOUR})
    busy.names = [conductor.following().trial_id, conductor.following().trial_id]
    paused, running = busy.names
    status = {paused: "RUNNING", running: "RUNNING"}
    busy.statuses = lambda: dict(status)
    for step in range(40):
        clock.advance(0.5)
        conductor.on_step_end(0, [])
        if step == 9:
            status[paused] = "PAUSED"
    assert list(json.loads(folder.root.read(spent_key(folder)))["trials"]) == [running]
    found = read(folder).trials
    assert found[paused].state == "paused"
    assert found[paused].usd == conductor.book.trials[paused].usd
    assert found[running].node_s == pytest.approx(20, abs=2.1)


class Gathers:
    """A file as on S3: what is appended is there when it is flushed, or much later."""

    def __init__(self, root, key):
        self._root, self._key, self._lines, self.parts = root, key, [], 0

    def append(self, data):
        self._lines.append(data)

    def flush(self):
        if self._lines:
            self._root.append(self._key, b"".join(self._lines))
            self._lines, self.parts = [], self.parts + 1


def test_journals_of_before_are_read(folder):
    journal = Journal(folder, "max")
    for name in ("a", "b"):
        journal.write("trial", trial=name, number=0, repeat=0, params={})
    journal.write("spent", elapsed_s=7.0, trials={"a": [3.0, 0.1, None], "b": [3.0, 0.1, 0.2]})
    book = read(folder)
    assert book.trials["a"].unpriced_hours == 0.1
    assert book.trials["b"].whole_usd == 0.2
