"""The rule that says whether a model is good enough, and whether it is better than the one before."""

from __future__ import annotations

import pytest

from sundog.spec import RegisterRule


def rule(text: str | None) -> RegisterRule:
    return RegisterRule.model_validate({"as": "digits", "if": text, "alias": "champion"})


def test_a_rule_admits_by_its_metric_and_says_why() -> None:
    assert rule("accuracy > 0.9").admits({"accuracy": 0.95})[0]
    good, why = rule("accuracy > 0.9").admits({"accuracy": 0.85})
    assert (good, why) == (False, "accuracy is 0.85, the rule is accuracy > 0.9")
    good, why = rule("f1 > 0.9").admits({"accuracy": 0.85})
    assert not good
    assert "no metric 'f1'" in why
    assert rule(None).admits({})[0]


@pytest.mark.parametrize(
    ("text", "new", "old", "moves"),
    [
        ("accuracy > 0.9", 0.97, 0.96, True),
        ("accuracy > 0.9", 0.95, 0.96, False),
        ("accuracy >= 0.9", 0.96, 0.96, True),
        ("accuracy < 1.9", 1.2, 1.1, False),
        ("accuracy < 1.9", 1.0, 1.1, True),
        (None, 0.1, 0.9, True),
    ],
)
def test_an_alias_does_not_move_to_a_worse_version(
    text: str | None, new: float, old: float, moves: bool
) -> None:
    assert rule(text).not_worse({"accuracy": new}, {"accuracy": old})[0] is moves
    assert rule(text).not_worse({}, {"accuracy": old})[0]
