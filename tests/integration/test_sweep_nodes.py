"""A sweep that loses a node, and one that loses its head: the same id goes on, nothing twice.

Each has a Ray of several nodes in a child process of its own, as in `test_runs_nodes.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from several_nodes import run_alone

pytestmark = pytest.mark.timeout(600)
MEMORY = 128 * 2**20
TRIALS = """
import time

def climb(params, report):
    done = int(report.state or 0)
    print(f"begins after {done} reports", flush=True)
    for number in range(done, 6):
        time.sleep(0.7)
        value = params["x"] * (1 - 0.5 ** (number + 1))
        report({"score": value}, state=str(number + 1).encode())
"""
SPEC = {
    "sweep": "nodes", "metric": "score", "trials": 4, "concurrent": 2, "seed": 3,
    "run": {"run": "climb", "recipe": "trials:climb", "steps": 6},
    "space": {"x": {"uniform": [0.0, 1.0]}}, "max_usd": 5, "usd_node_hour": 3.6,
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param("node", marks=pytest.mark.slow), pytest.param("head", marks=pytest.mark.long)],
)
def test_a_lost(tmp_path: Path, name: str) -> None:
    (tmp_path / "trials.py").write_text(TRIALS)
    (tmp_path / "nodes.yaml").write_text(yaml.safe_dump(SPEC, sort_keys=False))
    run_alone(__file__, name, str(tmp_path))


class Scene:
    """A head without CPUs, nodes of one CPU each, and the driver of a sweep as its own process."""

    def __init__(self, folder: Path) -> None:
        from sundog.storage.root import open_root
        from sundog.storage.runs import RunFolder

        self.folder = folder
        self.run = RunFolder(open_root(str(folder / "root")), "nodes-1")
        self.cluster, self.driver = None, None
        self.begin()

    def begin(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": MEMORY}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)

    def node(self):
        return self.cluster.add_node(num_cpus=1, object_store_memory=MEMORY)

    def submit(self) -> None:
        """A driver, as inside a job of this Ray."""
        log = (self.folder / "driver.log").open("a")
        self.driver = subprocess.Popen(
            [sys.executable, "-m", "sundog", "sweep", "nodes.yaml", "--run-id", "nodes-1",
             "--root", str(self.folder / "root")],
            cwd=self.folder, stdout=log, stderr=subprocess.STDOUT,
            env=os.environ | {
                "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "RAY_ADDRESS": self.cluster.address
            },
        )  # fmt: skip

    def book(self):
        from sundog.runs import sweep_book

        return sweep_book.read(self.run)

    def reports(self) -> int:
        return sum(len(t.reports) for t in self.book().trials.values())

    def until(self, what, limit_s: float = 120.0) -> None:
        deadline = time.monotonic() + limit_s
        while not what():
            assert self.driver.poll() is None, "the driver ended"
            assert time.monotonic() < deadline, f"it never happened: {what}"
            time.sleep(0.1)

    def finish(self) -> None:
        self.driver.wait(timeout=240)
        text = (self.folder / "driver.log").read_text()
        print(text)
        assert self.driver.returncode == 0
        assert self.run.record()["state"] == "finished"
        found = self.book().trials.values()
        assert [t.state for t in found] == ["finished"] * 4
        for trial in found:  # none lost, none twice
            assert [n for n, _ in trial.reports] == [1, 2, 3, 4, 5, 6]

    def begins(self, trial: str) -> list[str]:
        return [line for line in self.run.logs(trial) if "begins after" in line]

    def close(self) -> None:
        if self.driver is not None and self.driver.poll() is None:
            self.driver.kill()
        self.cluster.shutdown()


def node(scene: Scene) -> None:
    """`kill -9` of a node's raylet takes its trial with it: it goes on elsewhere from its state."""
    scene.node()
    second = scene.node()
    scene.submit()
    scene.until(lambda: scene.reports() >= 5)
    second.kill_raylet(check_alive=False)
    at = scene.book()
    scene.node()
    scene.finish()
    # A killed node takes its last second of prints with it.
    again = [name for name in at.trials if any("after 0" not in b for b in scene.begins(name))]
    assert len(again) == 1
    assert scene.book().usd > at.usd > 0


def head(scene: Scene) -> None:
    """The head is gone with everything, the driver too; a new Ray knows nothing but the root."""
    scene.node()
    scene.node()
    scene.submit()
    scene.until(lambda: any(t.ended for t in scene.book().trials.values()))
    scene.until(lambda: any(t.reports and not t.ended for t in scene.book().trials.values()))
    scene.cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
    scene.driver.send_signal(signal.SIGKILL)
    scene.driver.wait(timeout=60)
    scene.cluster.shutdown()
    before = scene.book()
    ended = {name for name, t in before.trials.items() if t.ended}
    scene.begin()
    scene.node()
    scene.node()
    scene.submit()
    scene.finish()
    assert "going on: " in (scene.folder / "driver.log").read_text()
    after = scene.book()
    assert all(after.trials[n].params == t.params for n, t in before.trials.items())
    assert all(len(scene.begins(name)) == 1 for name in ended)
    cut = [name for name, t in before.trials.items() if t.reports and name not in ended]
    assert any("after 0" not in line for name in cut for line in scene.begins(name))
    assert after.usd > before.usd > 0


if __name__ == "__main__":
    scene = Scene(Path(sys.argv[2]))
    try:
        {"node": node, "head": head}[sys.argv[1]](scene)
    finally:
        scene.close()
