"""Where a run's node-seconds and dollars went: the sums are always those of its nodes."""

from __future__ import annotations

import json

import pytest

from sundog.runs.bill import Prices
from sundog.runs.books import Books
from sundog.runs.stages import change
from sundog.storage.root import open_root

START_S = 1_700_000_000.0


@pytest.fixture
def root(tmp_path):
    root = open_root(str(tmp_path))
    for node, usd_hour in (("a", 3600.0), ("b", 7200.0), ("c", 3600.0)):  # $1, $2, $1 a second
        price(root, node, usd_hour)
    return root


def price(root, node: str, usd_hour: float, since_s: float = 0.0) -> None:
    record = {"format": 1, "prices": [[since_s, usd_hour]], "started_s": since_s}
    root.write(f"nodes/{node}.json", json.dumps(record).encode())


def news(step: int, after_s: float, nodes: str = "ab", stall_s: float = 0.0, **more) -> dict:
    """`nodes`: that of each worker, by rank."""
    return {
        "step": step, "at_s": START_S + after_s, "world": len(nodes), "stall_s": stall_s,
        "placed": [{"node_id": node} for node in nodes], "joined_s": START_S + after_s, **more,
    }  # fmt: skip


def whole(books: Books) -> None:
    """The account is of all the nodes' time and of all that they cost."""
    fields = books.fields
    assert sum(fields["account"].values()) == pytest.approx(fields["node_hours"] * 3600)
    assert sum(fields["account_usd"].values()) == pytest.approx(fields["usd"])


def test_workers_that_share_a_node_share_its_seconds_and_its_price(root):
    books = Books({}, Prices(root), START_S)
    books.news(news(1, 5, "aaaaaaaa"), None, {})
    books.news(news(100, 15, "aaaaaaaa"), None, {})
    assert books.fields["account"]["useful"] == pytest.approx(10)
    assert books.fields["account_usd"]["useful"] == pytest.approx(10)
    assert books.fields["account_usd"]["startup"] == pytest.approx(5)
    whole(books)


def test_each_loss_has_the_dollars_of_the_nodes_that_it_happened_on(root):
    books = Books({}, Prices(root), START_S)
    books.news(last := news(1, 5), None, {})
    books.news(last := news(100, 15, stall_s=2.0), None, {})
    lost = news(91, 20, "a", left_off={"step": -1, "at_s": None})  # ten steps again, after 5 s
    books.news(lost, change(last, lost, None), {})
    books.news(news(200, 30, "a"), None, {})
    usd = books.fields["account_usd"]
    assert usd["startup"] == pytest.approx(15)
    assert usd["checkpoint"] == pytest.approx(6)
    assert books.stall_s == pytest.approx(2)
    assert usd["restart"] == pytest.approx(15)
    assert usd["recomputed"] == pytest.approx(9 * 24 / 99)
    assert usd["useful"] == pytest.approx(24 - 9 * 24 / 99 + 10)
    whole(books)


def test_a_node_with_nothing_but_a_standby_is_paid_for_and_idle(root):
    books = Books({}, Prices(root), START_S)
    books.news(news(1, 5, "a"), None, {"b": False})
    books.news(news(10, 15, "a"), None, {"b": True, "a": True})
    books.news(news(20, 25, "a"), None, {})
    books.news(news(30, 35, "a"), None, {})
    losses = books.fields["account"]
    assert (losses["startup"], losses["idle"]) == (pytest.approx(5 + 10), pytest.approx(10))
    assert books.fields["account_usd"]["idle"] == pytest.approx(20)
    whole(books)


def test_a_node_that_came_later_is_not_paid_for_before(root):
    price(root, "a", 3600.0, START_S + 40)
    books = Books({}, Prices(root), START_S)
    books.news(news(1, 50, "a"), None, {})
    assert books.fields["account"]["startup"] == pytest.approx(10)
    assert books.fields["usd"] == pytest.approx(10)


def record(books: Books, step: int, placed: str, cut_off: bool) -> dict:
    return {
        **books.fields,
        "step": step,
        "cut_off": cut_off,
        "placed": news(0, 0, placed)["placed"],
    }


def test_a_killed_driver_s_steps_are_recomputed_and_its_nodes_waited(root):
    first = Books({}, Prices(root), START_S)
    first.news(news(1, 0), None, {})
    first.news(news(1000, 1000), None, {})
    before = record(first, 1000, "ab", cut_off=True)
    second = Books(before, Prices(root), START_S + 1060)
    second.news(news(701, 1080, "bc"), None, {})
    account = second.fields["account"]
    # b was there all the time; of a nobody knows, and c is new.
    assert account["restart"] == pytest.approx(60)
    assert account["startup"] == pytest.approx(2 * 20)
    assert account["recomputed"] == pytest.approx(299 * 2, rel=0.01)
    assert second.usd_before == pytest.approx(3 * 1000 + 2 * 60)
    whole(second)


def test_a_run_that_ended_waited_for_nobody(root):
    first = Books({}, Prices(root), START_S)
    first.news(news(1, 0), None, {})
    first.news(news(1000, 1000), None, {})
    second = Books(record(first, 1000, "ab", cut_off=False), Prices(root), START_S + 90_000)
    second.news(news(1001, 90_005), None, {})
    assert second.fields["account"]["restart"] == 0
    assert second.fields["account"]["recomputed"] == 0
    whole(second)


def test_without_a_price_there_are_node_seconds_and_no_dollars(root):
    books = Books({}, Prices(root), START_S)
    books.news(news(1, 5, "ax"), None, {})
    assert books.fields["account_usd"] is None
    assert books.fields["account"]["startup"] == pytest.approx(10)
