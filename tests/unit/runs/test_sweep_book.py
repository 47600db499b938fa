"""The journal says it all again; money is counted, capped and foreseen."""

import json
import math

import pyarrow
import pyarrow.csv
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_sweep_space import spec

from sundog.errors import SpecError
from sundog.runs import sweep_book
from sundog.runs.sweep_book import Book, Journal, Trial
from sundog.runs.sweep_purse import Purse, Rates, charge, forecast, require_prices
from sundog.runs.sweep_table import best_of, cells, front, rung, table, write
from sundog.storage.root import open_root
from sundog.storage.runs import new_run

TEXT = pyarrow.csv.ConvertOptions(column_types={"c": pyarrow.string()})


@pytest.fixture
def folder(tmp_path):
    return new_run(open_root(tmp_path.as_uri()), "s", "s-1")


def report(journal, name, number, value, **more):
    journal.write(
        "report", trial=name, report=number, value=value, step=number, steps=3,
        metrics={"accuracy": value, **more}, spent=[None, 0.0],
    )  # fmt: skip


def test_a_book_is_rebuilt_from_its_journal_even_when_the_last_line_is_cut(folder):
    journal = Journal(folder, "max")
    for n in range(2):
        journal.write("trial", trial=f"trial-00{n}", number=n, repeat=0, params={"lr": n})
    report(journal, "trial-000", 1, 0.5)
    report(journal, "trial-000", 2, 0.4)
    report(journal, "trial-001", 1, math.nan)
    journal.write("spent", elapsed_s=7.5, trials={"trial-000": [3.0, 0.001, 0.2]})
    journal.write("state", trial="trial-001", state="failed", why="it broke")
    folder.root.append(sweep_book.key(folder), b'{"what": "state", "trial": "trial-0')
    book = sweep_book.read(folder)
    assert book.trials["trial-000"].value == 0.5
    assert book.trials["trial-000"].reports == [(1, 0.5), (2, 0.4)]
    assert book.trials["trial-000"].usd == book.usd == 0.2
    assert book.trials["trial-001"].state == "failed"
    assert book.trials["trial-001"].value is None
    assert (book.elapsed_s, book.submissions, book.numbers()) == (7.5, 1, 2)


def test_a_rate_is_the_nodes_own_price_else_the_spec_s(folder):
    record = {"format": 1, "prices": [[0.0, 3.5]]}
    folder.root.write("nodes/n1.json", json.dumps(record).encode())
    rates = Rates(folder.root, {"CPU": 2, "GPU": 0.5}, 0.1)
    assert rates.usd_hour("n1") == 3.5
    assert rates.usd_hour("n2") == 0.1
    assert rates.share({"CPU": 8, "GPU": 1}) == 0.5
    assert rates.share({"CPU": 4}) == 0.5
    assert Rates(folder.root, {"CPU": 1}, None).usd_hour("n2") is None


def test_a_budget_needs_prices():
    with pytest.raises(SpecError, match="no price"):
        require_prices(spec(max_usd=1), ["n1"])
    require_prices(spec(), ["n1"])
    with pytest.raises(SpecError, match="buys no trial"):
        require_prices(spec(max_usd=0), [])


def priced(name, usd, reports=2, state="finished"):
    shown = [(i + 1, 0.5) for i in range(reports)]
    return Trial(name, state=state, usd=usd, node_hours=usd, node_s=1.0, reports=shown)


def test_caps_and_forecast_go_by_what_was_spent():
    book = Book()
    book.trials = {t.name: t for t in (priced("a", 0.4), priced("b", 0.2))}
    purse = Purse(spec(max_usd=1.0), book)
    assert purse.empty() is None
    assert purse.first_report_usd() == pytest.approx(0.15)
    assert purse.too_small() is None
    assert forecast(book, 4).usd == pytest.approx(1.2)
    book.trials["c"] = priced("c", 0.3, state="running")
    book.changed()
    assert "left" in (purse.too_small() or "")
    book.trials["c"] = priced("c", 0.5, state="running")
    book.changed()
    assert "$1" in (purse.empty() or "")
    book.elapsed_s = 11
    assert "time" in (Purse(spec(max_time="10s"), book).empty() or "")
    book.trials["d"] = priced("d", 0.0, state="failed")
    book.changed()
    assert "failed" in (Purse(spec(max_failed=1), book).empty() or "")
    assert forecast(Book(), 4).usd is None


def shown(name, number, value, usd=0.1, repeat=0, **more):
    return Trial(
        name, number, repeat, {"lr": 0.1}, "finished", "", value, {"accuracy": value, **more},
        [(1, value)], 3, 3, 1.0, 0.01, usd,
    )  # fmt: skip


def test_the_best_configuration_is_the_best_mean_not_the_luckiest_seed():
    trials = [
        shown("a", 0, 0.9), shown("a-1", 0, 0.5, repeat=1),
        shown("b", 1, 0.8), shown("b-1", 1, 0.8, repeat=1), shown("c", 2, 0.99),
    ]  # fmt: skip
    best = best_of(trials, spec(repeats=2))
    assert best is not None
    assert best.number == 1  # c has one repeat only


def test_the_front_is_what_nobody_beats():
    one = spec(also={"latency": "min", "usd": "min"})
    trials = [
        shown("a", 0, 0.9, 0.3, latency=5.0), shown("b", 1, 0.8, 0.3, latency=2.0),
        shown("c", 2, 0.7, 0.3, latency=4.0), shown("d", 3, 0.6, 0.1, latency=9.0),
    ]  # fmt: skip
    assert [t.name for t in front(trials, one)] == ["a", "b", "d"]


def test_rungs_count_the_cuts_that_were_passed():
    one = spec(scheduler={"asha": {"grace": 2, "eta": 3}})
    for reports, expected in ((1, 0), (2, 1), (5, 1), (6, 2), (18, 3)):
        trial = Trial("t", reports=[(reports, 0.5)])
        assert rung(trial, one) == expected
    assert rung(Trial("t"), spec()) is None
    assert rung(Trial("t"), spec(scheduler={"asha": {"brackets": 2}})) is None


def test_a_table_and_files_have_every_trial(tmp_path):
    import pyarrow.parquet

    one = spec(scheduler="asha", also={"usd": "min"})
    trials = [shown("a", 0, 0.9), Trial("b", state="failed", why="ValueError: no")]
    lines = table(trials, trials[0], one)
    assert lines[1].startswith("*")
    assert "ValueError: no" in lines[2]
    assert "1 failed" in lines[-1]
    for name in ("t.csv", "t.parquet"):
        write(trials, one, tmp_path / name)
    assert pyarrow.csv.read_csv(tmp_path / "t.csv").num_rows == 2
    assert pyarrow.parquet.read_table(tmp_path / "t.parquet")["accuracy"].to_pylist() == [0.9, None]
    assert len(cells(trials, one)[0]) == len(cells(trials, one)[1][0])


@pytest.mark.parametrize(
    "choices", [["a", 1], [True, 2], [[1, 2], [3]], [[1, "a"], None], ["auto", 0.1, [2]]]
)
def test_choices_of_any_kind_are_exported(tmp_path, choices):
    import pyarrow.parquet

    one = spec(space={"c": {"choice": choices}})
    trials = [Trial(f"t{n}", params={"c": choice}, value=0.5) for n, choice in enumerate(choices)]
    for name in ("t.csv", "t.parquet"):
        write(trials, one, tmp_path / name)
    found = pyarrow.csv.read_csv(tmp_path / "t.csv", convert_options=TEXT)["c"].to_pylist()
    assert found == ["" if c is None else str(c) for c in choices]
    kept = pyarrow.parquet.read_table(tmp_path / "t.parquet")["c"].to_pylist()
    assert [None if k is None else str(k) for k in kept] == [
        None if c is None else str(c) for c in choices
    ]


def test_trials_stand_in_the_order_of_their_numbers():
    some = [Trial(f"trial-{n:03d}", n) for n in (1000, 999, 2)]
    assert [t.number for t in sorted(some, key=lambda t: t.place)] == [2, 999, 1000]


def test_what_is_shown_are_the_parameters_of_the_best_value(folder):
    journal = Journal(folder, "max")
    journal.write("trial", trial="trial-000", number=0, repeat=0, params={"lr": 0.1})
    report(journal, "trial-000", 1, 0.9)
    journal.write("state", trial="trial-000", state="running", why="took over", params={"lr": 0.2})
    report(journal, "trial-000", 2, 0.5)
    for book in (journal.book, sweep_book.read(folder)):
        (trial,) = book.trials.values()
        assert trial.params == {"lr": 0.2}  # what it goes on with
        assert trial.row()["params"] == trial.shown == {"lr": 0.1}
        assert cells([trial], spec(space={"lr": {"uniform": [0, 1]}}))[1][0][1] == 0.1
    report(journal, "trial-000", 3, 0.95)
    assert journal.book.trials["trial-000"].shown == {"lr": 0.2}


def test_a_finished_sweep_goes_on_for_another_registration_or_more_trials(folder):
    from sundog.runs import sweep_space
    from sundog.runs.sweep import already_swept

    one = spec(trials=4, max_usd=2)
    folder.update(state="finished", best="trial-000", spec=one.model_dump(mode="json"),
                  search=sweep_space.identity(one))  # fmt: skip
    assert "finished already" in (already_swept(one, folder) or "")
    rule = {"as": "digits"}
    for change in ({"register": rule}, {"trials": 5}, {"trials": None}, {"max_usd": 3}):
        assert already_swept(spec(**({"trials": 4, "max_usd": 2} | change)), folder) is None
    assert already_swept(spec(trials=3, max_usd=1), folder)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["charge", "end", "again", "report"]),
                          st.one_of(st.none(), st.floats(0, 10))), max_size=40))  # fmt: skip
def test_the_sums_are_those_of_all_trials_whatever_happened(steps):
    book = Book()
    for name in "abcd":
        book.apply({"what": "trial", "trial": name, "number": 0, "repeat": 0, "params": {}})
    for which, what, usd_hour in steps:
        name = "abcd"[which]
        if what == "charge" and not book.trials[name].ended:
            charge(book.trials[name], 60, [(0.5, usd_hour)])
        elif what == "report":
            said = {"report": 1, "value": 1.0, "step": 1, "steps": 2, "metrics": {}}
            book.apply({"what": "report", "trial": name, **said})
        elif what in ("end", "again"):
            state = "failed" if what == "end" else "waiting"
            book.apply({"what": "state", "trial": name, "state": state, "why": ""})
        trials = list(book.trials.values())
        priced = [t.usd for t in trials if t.usd is not None]
        assert book.usd == (pytest.approx(sum(priced)) if priced else None)
        assert book.node_hours == pytest.approx(sum(t.node_hours for t in trials))
        assert book.unpriced_hours == pytest.approx(sum(t.unpriced_hours for t in trials))
        assert book.ended == book.failed == sum(t.ended for t in trials)
        told = [t for t in trials if t.reports and t.whole_usd is not None]
        assert book.sums().told[1] == sum(len(t.reports) for t in told)
