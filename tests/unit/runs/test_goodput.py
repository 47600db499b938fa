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
    meter.stepped(80, 1, 0)
    meter.stepped(100, 1, 4, stall_s=1.0)
    losses = meter.account.losses
    assert losses["startup"] == 10
    assert losses["checkpoint"] == 2
    assert losses["restart"] == 8
    assert losses["recomputed"] == pytest.approx(20 * 18 / 100)
    assert meter.account.useful == pytest.approx(18 - 3.6 + 4)
