"""What `sundog sweep show` says above its table."""

import pytest

from sundog.cli.output import Output
from sundog.cli.sweeps import _show
from sundog.runs.sweep_book import Trial
from sundog.spec.sweep import SweepSpec

SPEC = SweepSpec.model_validate(
    {
        "sweep": "s", "run": {"run": "r", "recipe": "a:B", "steps": 10}, "metric": "accuracy",
        "space": {"lr": {"log": [0.001, 0.1]}}, "max_usd": 5,
    }
)  # fmt: skip
TRIALS = [Trial("trial-000", 0, 0, {"lr": 0.01}, "waiting", "its hours are over", usd=0.3)]


@pytest.mark.parametrize(
    ("record", "live", "says"),
    [
        ({"paused_until_s": 1.0, "message": "outside its hours: paused until Mon 22:00 (UTC)"},
         True, ["s-1 · paused ·", "paused until Mon 22:00 (UTC)"]),
        ({"paused_until_s": 1.0}, False, ["its driver is gone"]),
        ({}, True, ["s-1 · running ·"]),
        ({"usd": 0.3, "unpriced_node_hours": 0.25}, True,
         ["$0.3000 and 0.2500 node-hours without a price of $5"]),
    ],
)  # fmt: skip
def test_its_head(record, live, says, capsys):
    whole = {"state": "running", "step": 0, "steps": 3, **record}
    _show(Output(False), "s-1", whole, SPEC, TRIALS, live)
    shown = capsys.readouterr().out
    for text in says:
        assert text in shown
    assert "its hours are over" in shown
