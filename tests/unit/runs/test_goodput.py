from __future__ import annotations

import pytest

from sundog.runs.goodput import Account, Meter


def test_shares_add_up_to_the_whole():
    account = Account()
    account.work(80)
    account.lose("restart", 15)
    account.lose("idle", 5)
    assert account.goodput == pytest.approx(0.8)
    assert account.goodput + sum(account.shares().values()) == pytest.approx(1)


def test_work_that_is_lost_moves_and_does_not_vanish():
    account = Account()
    account.work(100)
    account.undo(30)
    assert (account.useful, account.losses["recomputed"]) == (70, 30)
    account.undo(1000)
    assert (account.useful, account.available) == (0, 100)


def test_a_loss_without_a_name_is_refused():
    with pytest.raises(ValueError, match="bad luck"):
        Account().lose("bad luck", 1)


def test_an_empty_account_has_no_goodput():
    assert Account().goodput == 0


def test_a_live_run_s_meter_counts_steps_stalls_and_steps_done_again():
    meter = Meter()
    meter.waited("startup", 2, 5)
    meter.stepped(100, 2, 10, stall_s=1.0)
    meter.waited("restart", 2, 4)
    meter.stepped(80, 1, 0, stall_s=1.0)
    meter.stepped(100, 1, 4, stall_s=1.0)
    losses = meter.account.losses
    assert losses["startup"] == 10
    assert losses["checkpoint"] == 2
    assert losses["restart"] == 8
    assert losses["recomputed"] == pytest.approx(20 * 18 / 100)
    assert meter.account.useful == pytest.approx(18 - 3.6 + 4)


def test_a_new_first_worker_s_stalls_count_from_its_own_beginning():
    meter = Meter()
    meter.stepped(100, 1, 10, stall_s=3.0)
    meter.stepped(101, 1, 0, stall_s=0.0)  # the first worker was lost, another one counts now
    meter.stepped(200, 1, 10, stall_s=2.0)
    assert meter.account.losses["checkpoint"] == pytest.approx(5)


def test_the_next_driver_s_meter_knows_the_steps_that_are_computed_again():
    first = Meter()
    first.stepped(1000, 2, 500)
    second = Meter(Account.of(first.account.seconds()), 1000)
    second.waited("restart", 2, 30)
    second.stepped(700, 2, 0)
    assert second.account.losses["recomputed"] == pytest.approx(300)
    second.stepped(1000, 2, 150)
    assert second.account.useful == pytest.approx(1000)


def test_steps_that_are_lost_twice_are_undone_once_each():
    meter = Meter()
    meter.stepped(1000, 1, 1000)
    meter.stepped(700, 1, 0)
    meter.stepped(800, 1, 100)
    meter.stepped(700, 1, 0)
    assert meter.account.losses["recomputed"] == pytest.approx(400)
    assert meter.account.useful == pytest.approx(700)
