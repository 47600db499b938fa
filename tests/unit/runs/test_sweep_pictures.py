"""What a sweep's pictures and tables say, from a journal, without any sweep."""

import csv

import pyarrow.parquet
import pytest
from test_sweep_space import spec

from sundog.runs import sweep_book, sweep_plots, sweep_table
from sundog.runs.sweep_book import Journal
from sundog.runs.sweep_space import draw
from sundog.storage.root import open_root
from sundog.storage.runs import new_run

ONE = {"max_usd": 5, "usd_node_hour": 1, "scheduler": "asha", "also": {"usd": "min"}}


@pytest.fixture
def run(tmp_path):
    """Eight trials of one to three reports, at a cent each."""
    folder = new_run(open_root(tmp_path.as_uri()), "s", "s-1")
    journal = Journal(folder, "max")
    for number in range(8):
        name, spent = f"trial-{number:03d}", 0.01 * number
        params = draw(spec(**ONE), number)
        journal.write("trial", trial=name, number=number, repeat=0, params=params)
        for report in range(1, 2 + number % 3):
            metrics = {"accuracy": 0.5 + number / 100 + report / 10}
            journal.write(
                "report", trial=name, report=report, value=metrics["accuracy"], step=report,
                steps=3, metrics=metrics, spent=[spent, spent],
            )  # fmt: skip
        journal.write("spent", elapsed_s=number, trials={name: [1.0, 0.01, 0.01]})
        state = "finished" if number % 3 == 2 else "stopped"
        journal.write("state", trial=name, state=state, why="because")
    return folder


def test_pictures_show_what_is_absent_and_a_budget_that_is_far_away(run, tmp_path):
    one, book = spec(**ONE), sweep_book.read(run)
    made = sweep_plots.draw(one, list(book.trials.values()), sweep_book.entries(run), tmp_path)
    assert set(made) == {"parallel", "spend", "importance", "front"}
    # Matplotlib names each text in a comment.
    assert "<!-- without -->" in (tmp_path / "parallel.svg").read_text()  # momentum, beside adam
    assert "<!-- dollars (the budget is $5) -->" in (tmp_path / "spend.svg").read_text()
    near = spec(**ONE | {"max_usd": 0.08})
    sweep_plots.draw(near, list(book.trials.values()), sweep_book.entries(run), tmp_path)
    text = (tmp_path / "spend.svg").read_text()
    assert "<!-- dollars -->" in text
    assert "<!-- budget -->" in text


def test_csv_and_parquet_have_the_same_rows(run, tmp_path):
    one, trials = spec(**ONE), list(sweep_book.read(run).trials.values())
    for name in ("t.csv", "t.parquet"):
        sweep_table.write(trials, one, tmp_path / name)
    rows = pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert {r["trial"]: r["accuracy"] for r in rows} == {t.name: t.value for t in trials}
    assert any(r["momentum"] is None for r in rows)
    with (tmp_path / "t.csv").open() as text:
        assert [float(r["lr"]) for r in csv.DictReader(text)] == [r["lr"] for r in rows]
