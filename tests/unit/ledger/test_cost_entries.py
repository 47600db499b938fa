"""The ledger: append-only, exact sums, and node-hours where there are no dollars."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sundog.errors import Corrupt, FormatTooNew
from sundog.ledger import Entry, FileLedger, RootLedger, cost, read_entries, read_root
from sundog.market.prices import cost_between
from sundog.storage.root import open_root

DAY_S = 86400.0


def entries() -> list[Entry]:
    about = {"pool": "a10g", "market": "spot", "shape": "g5.xlarge"}
    return [
        Entry("launch", 0.0, "i-1", "c", 1.0, about, "run-1"),
        Entry("price", 3600.0, "i-1", "c", 3.0),
        Entry("terminate", 7200.0, "i-1", "c"),
        Entry("launch", DAY_S - 3600, "i-2", "c", 2.0, about),
        Entry("launch", 0.0, "i-3", "c", None, {**about, "market": "on-demand"}),
        Entry("terminate", 3600.0, "i-3", "c"),
    ]


def test_dollars_follow_the_price_as_it_changes_and_none_is_guessed() -> None:
    lines = {x.key: x for x in cost(entries(), "node-type", DAY_S + 3600, cost_between)}
    spot, full = lines["a10g spot g5.xlarge"], lines["a10g on-demand g5.xlarge"]
    assert (spot.node_hours, spot.usd) == (4.0, 4.0 + 4.0)
    assert (full.node_hours, full.usd, full.unpriced_hours) == (1.0, None, 1.0)
    by_run = {x.key: x.node_hours for x in cost(entries(), "run", DAY_S + 3600, cost_between)}
    assert by_run == {"run-1": 2.0, "(no run)": 3.0}


def test_a_node_over_midnight_is_split_by_day() -> None:
    lines = {x.key: x.node_hours for x in cost(entries(), "day", DAY_S + 3600, cost_between)}
    assert lines == {"1970-01-01": 4.0, "1970-01-02": 1.0}


def test_a_file_keeps_every_entry_of_writers_at_once(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path / "x" / "ledger.jsonl")

    def write(name: str) -> None:
        for i in range(50):
            ledger.append(Entry("launch", float(i), f"{name}-{i}", "c", 1.0))

    threads = [threading.Thread(target=write, args=(str(t),)) for t in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len({e.node for e in read_entries(ledger.path)}) == 200


def test_a_later_format_and_a_torn_line_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"format": 2}\n')
    with pytest.raises(FormatTooNew):
        list(read_entries(path))
    path.write_text('{"format": 1, "kind"\n')
    with pytest.raises(Corrupt, match=r"ledger\.jsonl:1"):
        list(read_entries(path))


def test_in_a_storage_root_every_entry_is_an_object_of_its_own() -> None:
    made: dict[str, bytes] = {}

    class Root:
        def create(self, key: str, data: bytes) -> str:
            assert key not in made
            made[key] = data
            return ""

    for entry in entries():
        RootLedger(Root()).append(entry)
    assert len(made) == 6
    assert all(k.startswith("ledger/1970-01-01/") for k in made)
    assert all(json.loads(v)["format"] == 1 for v in made.values())


def test_an_entry_that_is_written_twice_is_in_the_root_once(tmp_path: Path) -> None:
    """Its first writing may not have been answered, or two heads found the same machine."""
    root = open_root(f"file://{tmp_path}")
    for entry in (*entries(), *entries()):
        RootLedger(root).append(entry)
    assert sorted(read_root(root), key=repr) == sorted(entries(), key=repr)


def test_what_one_root_took_in_comes_out_in_the_order_of_time(tmp_path: Path) -> None:
    root = open_root(f"file://{tmp_path}")
    for entry in reversed(entries()):
        RootLedger(root).append(entry)
    found = list(read_root(root))
    assert sorted(found, key=repr) == sorted(entries(), key=repr)
    assert cost(found, "day", DAY_S + 3600, cost_between) == cost(
        entries(), "day", DAY_S + 3600, cost_between
    )


@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 1e5), st.floats(0.01, 9)), max_size=6))
def test_every_allocation_adds_up_to_the_same_hours(
    spans: list[tuple[float, float, float]],
) -> None:
    found = []
    for i, (start, length, price) in enumerate(spans):
        found.append(Entry("launch", start, f"i-{i}", "c", price, {}, f"r-{i % 2}"))
        found.append(Entry("terminate", start + length, f"i-{i}", "c"))
    total = sum(length for _, length, _ in spans) / 3600
    for by in ("run", "node-type", "day"):
        lines = cost(found, by, 1e9, cost_between)  # type: ignore[arg-type]
        assert sum(x.node_hours for x in lines) == pytest.approx(total, abs=1e-6)
