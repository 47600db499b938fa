"""What is kept of requests: sampled, bounded, cleaned, written as Parquet and read back."""

import asyncio

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sundog.errors import SpecError, StorageUnavailable
from sundog.serving import capture
from sundog.serving.capture import Capturer, Rule, hook_of, read, rule_of
from sundog.storage.root import open_root

X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture
def root(tmp_path):
    return open_root(f"file://{tmp_path}")


def capturer(root, hook=None, chance=lambda: 0.0):
    return Capturer(hook, lambda _: root, chance)


def offer(made, rule=None, number=1, request_id="r", values=X):
    words = b"\x03\x00\x00\x00abc"
    for i in range(number):
        about = (f"{request_id}{i}", "digits", "3", "k1")
        inputs = [
            ("x", "FP32", values.shape, memoryview(values.tobytes())),
            ("word", "BYTES", (1,), words),
        ]
        made.offer(rule or Rule(1.0), about, inputs, [("y", "INT64", (1,), np.int64(7).tobytes())])


def flush(made):
    asyncio.run(made.flush())


def test_rows_come_back_as_they_were(root):
    made = capturer(root)
    offer(made, number=3)
    flush(made)
    rows = read(root, "digits")
    assert {r["id"] for r in rows} == {"r0", "r1", "r2"}
    row = rows[0]
    assert (row["service"], row["version"], row["key"]) == ("digits", "3", "k1")
    np.testing.assert_array_equal(row["inputs"]["x"], X)
    assert row["inputs"]["word"].tolist() == [b"abc"]
    assert row["outputs"]["y"].tolist() == [7]
    assert made.counts == {("digits", "kept"): 3}
    assert read(root, "other") == []
    assert len(read(root, "digits", limit=2)) == 2
    assert read(root, "digits", since_s=row["at_s"] + 60) == []


def test_a_day_is_a_folder_and_columns_are_typed(root):
    made = capturer(root)
    offer(made)
    flush(made)
    [entry] = root.entries("captures/digits/3")
    assert entry.key.split("/")[3].startswith("20")
    schema = pq.read_schema(root.local_path(entry.key))
    assert schema.field("input.x").type.value_type == pa.float32()
    assert schema.metadata[b"sundog.format"] == b"1"


def test_requests_of_different_shapes_share_a_file(root):
    made = capturer(root)
    offer(made, values=X)
    offer(made, values=X[:1], request_id="s")
    flush(made)
    shapes = {r["id"]: r["inputs"]["x"].shape for r in read(root, "digits")}
    assert shapes == {"r0": (2, 4), "s0": (1, 4)}


def test_only_the_share_is_chosen():
    chances = iter([0.005, 0.5, 0.0099, 0.01])
    made = Capturer(chance=lambda: next(chances))
    assert [made.chosen(Rule(0.01)) for _ in range(4)] == [True, False, True, False]
    assert rule_of({"share": 0.0, "leave_out": []}) is None
    assert rule_of(None) is None


def test_what_a_service_leaves_out_is_never_held(root):
    made = capturer(root)
    offer(made, Rule(1.0, frozenset(("x",))))
    assert [t[0] for t in made._waiting[0].inputs] == ["word"]
    flush(made)
    assert "x" not in read(root, "digits")[0]["inputs"]


def test_the_hook_cleans_refuses_and_may_fail_without_letting_anything_through(root):
    def hook(row):
        if row["id"] == "r0":
            return None
        if row["id"] == "r1":
            raise ValueError("what is this")
        row["inputs"]["x"] = row["inputs"]["x"] * 0
        row["key"] = ""
        return row

    made = capturer(root, hook)
    offer(made, number=3)
    flush(made)
    [row] = read(root, "digits")
    assert row["id"] == "r2"
    assert not row["inputs"]["x"].any()
    assert row["key"] == ""
    assert made.counts == {("digits", "kept"): 1, ("digits", "dropped"): 2}
    assert 'outcome="dropped"} 2' in "\n".join(made.text())


def test_rows_that_are_no_rows_cost_themselves_only(root, caplog):
    def hook(row):
        number = int(row["id"][1:])
        if number == 3:
            del row["at_s"]
        if number == 5:
            row["inputs"] = "none of your business"
        if number == 6:
            return "no row"
        if number == 9:
            row["key"] = 9  # not the type of the others
        return row

    made = capturer(root, hook)
    offer(made, number=12)
    flush(made)
    assert {r["id"] for r in read(root, "digits")} == {f"r{i}" for i in range(12)} - {
        "r3",
        "r5",
        "r6",
    }
    assert made.counts == {("digits", "kept"): 9, ("digits", "dropped"): 3}
    assert made._size == 0
    assert caplog.text.count("cannot be written and is dropped") == 3


def test_a_root_that_breaks_otherwise_ends_no_captures(root, caplog):
    roots = iter([lambda: 1 / 0, lambda: root])
    made = Capturer(open_root=lambda _: next(roots)(), chance=lambda: 0.0)
    offer(made, number=2)
    flush(made)
    assert made.counts == {("digits", "kept"): 0, ("digits", "dropped"): 2}
    assert made._size == 0
    assert "ZeroDivisionError" in caplog.text
    offer(made)
    flush(made)
    assert len(read(root, "digits")) == 1


def test_memory_is_bounded_and_what_does_not_fit_is_counted(root, monkeypatch):
    monkeypatch.setattr(capture, "MAX_BUFFERED", 200)
    made = capturer(root)
    offer(made, number=10)
    assert made.counts == {("digits", "dropped"): 6}
    assert made._size <= 200
    monkeypatch.setattr(capture, "MAX_SAMPLE", 10)
    offer(made)
    assert made.counts == {("digits", "dropped"): 7}
    flush(made)
    assert made._size == 0
    assert made.counts["digits", "kept"] == 4


def test_a_root_that_is_away_costs_samples_only():
    def away(_):
        raise StorageUnavailable("no such place")

    made = Capturer(open_root=away, chance=lambda: 0.0)
    offer(made, number=2)
    flush(made)
    assert made.counts == {("digits", "kept"): 0, ("digits", "dropped"): 2}
    assert made._size == 0


def test_what_was_received_may_change_after_the_answer(root):
    made = capturer(root)
    buffer = bytearray(X.tobytes())
    made.offer(
        Rule(1.0), ("r", "digits", "3", ""), [("x", "FP32", X.shape, memoryview(buffer))], []
    )
    buffer[:] = bytes(len(buffer))
    flush(made)
    np.testing.assert_array_equal(read(root, "digits")[0]["inputs"]["x"], X)


def test_a_later_format_is_refused(root):
    made = pa.table({"at_s": [1.0]}).replace_schema_metadata({"sundog.format": "9"})
    path = root.local_path("captures/digits/1/2026-01-01/a.parquet")
    path.parent.mkdir(parents=True)
    pq.write_table(made, path)
    with pytest.raises(StorageUnavailable, match="format 9"):
        read(root, "digits")


def test_hooks_are_found_or_named():
    assert hook_of("") is None
    assert hook_of("json:dumps") is not None
    for text in ("no.such:thing", "json:nothing", "json", "json:__name__"):
        with pytest.raises(SpecError, match="SUNDOG_CAPTURE_HOOK"):
            hook_of(text)
