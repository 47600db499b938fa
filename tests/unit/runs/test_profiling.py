from __future__ import annotations

import pytest
from toy import Toy, toy_spec

from sundog.runs.exchange import Alone
from sundog.runs.loop import Loop
from sundog.runs.profiling import Profiler
from sundog.storage.root import open_root
from sundog.storage.runs import new_run


def profiled(tmp_path, steps: int, trace: int) -> list[str]:
    """The traces that a run's folder has after so many steps."""
    root = open_root(str(tmp_path))
    loop = Loop(toy_spec(steps=steps), Toy())
    loop.trace = Profiler(new_run(root, "p", "p-1"), trace, steps)
    loop.join(Alone())
    loop.run()
    return root.children("runs/p-1/profile")


@pytest.mark.parametrize(
    ("steps", "said"),
    [(9, "profile of 4 steps: "), (8, "profile of 4 steps: "), (5, "profile of 4 steps: "),
     (4, "profile of 3 steps (the run had no 4 left)"), (2, "profile of 1 steps (the run")],
)  # fmt: skip
def test_a_short_run_is_traced_as_far_as_it_goes(tmp_path, capsys, steps, said):
    assert profiled(tmp_path, steps, 4) == [f"{steps}.json.gz"]
    assert said in capsys.readouterr().out


def test_a_run_of_one_step_says_that_it_has_none(tmp_path, capsys):
    assert profiled(tmp_path, 1, 4) == []
    assert "no profile" in capsys.readouterr().out


def test_a_run_is_traced_once_whoever_is_its_first_worker(tmp_path):
    assert profiled(tmp_path, 12, 3) == ["8.json.gz"]
    assert profiled(tmp_path, 20, 5) == ["8.json.gz"]
