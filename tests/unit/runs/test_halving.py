"""Halving with second chances: cuts, late bloomers, rounds, and a board that survives JSON."""

import heapq
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sundog.runs.halving import Board, Rule

RULE = Rule(max_age=20)


def sweep(curves, costs=None, rule=RULE, workers=2):
    """Run curves to the end of the rule; (board, best value seen, total cost)."""
    board, queue, ages, started, order, spent = Board(rule), [], {}, 0, 0, 0.0
    best, idle, now = -math.inf, workers, 0.0
    while True:
        while idle:
            choice = board.choose(started < len(curves))
            if choice.action == "finish":
                break
            name = choice.trial
            if choice.action == "start":
                name, started = str(started), started + 1
            board.start(name)
            order, idle = order + 1, idle - 1
            heapq.heappush(queue, (now + 1, order, name))
        if not queue:
            return board, best, spent
        now, _, name = heapq.heappop(queue)
        age = ages[name] = ages.get(name, 0) + 1
        cost = costs[int(name)] if costs else 1.0
        value = curves[int(name)][age - 1]
        best, spent = max(best, value), spent + cost
        if board.report(name, value, cost).action == "continue":
            order += 1
            heapq.heappush(queue, (now + 1, order, name))
        else:
            idle += 1


def power(final, drop, rate, length=20):
    return [final - drop * (a + 1) ** -rate for a in range(length)]


CURVES = [power(60 + i % 17 + 0.01 * i, 30 + i % 5, 1.2) for i in range(40)]


def test_it_finds_the_best_for_a_fraction_of_what_all_would_cost():
    _, best, spent = sweep(CURVES)
    assert best == max(c[-1] for c in CURVES)
    assert spent < 0.65 * 20 * len(CURVES)


def test_a_late_bloomer_that_one_look_would_lose_is_found():
    bloomer = power(92, 60, 0.6)  # in the lower half at the first cut, best at the end
    curves = [*CURVES, bloomer]
    _, best, _ = sweep(curves)
    assert best == bloomer[-1]
    strict = Rule(max_age=20, rounds=((1.0, 0.0),))
    assert sweep(curves, rule=strict)[1] < best


def test_wider_rounds_come_only_when_fresh_trials_are_gone():
    board = Board(RULE)
    for i in range(20):
        board.start(str(i))
        for value in (1.0 * i, 1.0 * i):
            board.report(str(i), -value, 1.0)
    assert board.choose(fresh=True).action in ("start", "resume")
    assert board.round == 0
    while board.choose(fresh=False).action == "resume":
        board.start(board.choose(fresh=False).trial)
    assert board.round == len(RULE.rounds) - 1
    assert board.choose(fresh=False).action == "finish"


def test_verdicts_say_rank_peers_and_why():
    board = Board(RULE)
    for i in range(9):
        for _ in range(2):
            said = board.report(str(i), -float(i), 1.0)
    assert said.action == "pause"
    assert said.rank == 8
    assert "rank 9 of 9 after 2 reports" in said.reason
    assert board.judge("0").action == "continue"


def test_a_complete_trial_is_never_resumed():
    board, _, _ = sweep(CURVES)
    done = [n for n, t in board.trials.items() if t.state == "complete"]
    assert done
    assert all(board.trials[n].age == 20 for n in done)


def test_thrift_lets_a_cheap_trial_go_further_than_a_dear_one():
    def allowed(thrift, cost):
        board = Board(Rule(max_age=20, thrift=thrift))
        for i in range(10):
            for _ in range(2):
                board.report(str(i), float(i), cost if i == 0 else 1.0)
        return board.judge("0").allowed

    assert allowed(0.0, 4.0) == allowed(0.0, 1.0)
    assert allowed(1.0, 4.0) == pytest.approx(allowed(1.0, 1.0) / 4)


def test_a_diverged_trial_ranks_last_and_a_failed_one_is_let_alone():
    board = Board(RULE)
    for name, value in (("a", 1.0), ("b", 2.0), ("c", math.nan)):
        for _ in range(2):
            board.report(name, value, 1.0)
    assert board.judge("c").rank == 2
    board.fail("b")
    assert board.choose(fresh=False).trial != "b"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(-5, 5), min_size=8, max_size=8), min_size=1, max_size=15))
def test_any_curves_end_and_the_board_survives_json(curves):
    rule = Rule(max_age=8)
    board, best, spent = sweep(curves, rule=rule)
    assert best == max(v for t in board.trials.values() for v in t.values)
    assert spent <= 8 * len(curves)
    again = Board.from_dict(rule, json.loads(json.dumps(board.to_dict())))
    assert again.to_dict() == board.to_dict()
    assert all(again.judge(n) == board.judge(n) for n in board.trials)


def test_rules_that_cannot_be_are_refused():
    for wrong in ({"grace": 0}, {"grace": 21}, {"keep": 0.0}, {"rounds": ()}):
        with pytest.raises(ValueError):
            Rule(**{"max_age": 20, **wrong})
    with pytest.raises(ValueError, match="cannot cost"):
        Board(RULE).report("a", 1.0, -1.0)
