"""Nodes that come and go under a run, for real: a drain with a deadline, a raylet killed, nodes added.

Each scenario has a Ray of several nodes in a child process of its own: Ray's switch that keeps it on
loopback, which the other tests use, forbids a second node.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from several_nodes import run_alone

pytestmark = pytest.mark.timeout(600)
MEMORY = 128 * 2**20
MARKET = "ray.io/market-type"
RECIPE = '''
import os, time
import numpy as np, torch
from sundog import Columns, Recipe

class Slow(Recipe):
    """A linear model whose steps take a while, so that there is time for something to happen."""
    def model(self):
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
    def dataset(self, split):
        if split != "train":
            raise KeyError(split)
        if self.params.get("asks"):
            assert len(os.environ[self.params["asks"]]) == 32
        x = torch.tensor(np.random.default_rng(1).normal(size=(500, 4)), dtype=torch.float32)
        return Columns(input=x, y=x.sum(1, keepdim=True))
    def loss(self, model, batch, rng):
        time.sleep(self.params.get("slow", 0.01))
        return torch.nn.functional.mse_loss(model(batch["input"]), batch["y"])
    def optimizer(self, params):
        return torch.optim.AdamW(params, lr=1e-2)
    def example_inputs(self):
        return {"input": torch.zeros(2, 4)}
'''


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("notice", marks=pytest.mark.slow),
        pytest.param("raylet", marks=pytest.mark.slow),
        pytest.param("silence", marks=pytest.mark.long),
        pytest.param("notice_to_all", marks=pytest.mark.long),
        pytest.param("on_demand", marks=pytest.mark.long),
        pytest.param("spot_first", marks=pytest.mark.long),
    ],
)
def test_nodes(tmp_path: Path, name: str) -> None:
    # A worker on a node of the cluster must find its way to the recipe's module.
    (tmp_path / "slow.py").write_text(RECIPE)
    run_alone(__file__, name, str(tmp_path))


class Scene:
    """A head without CPUs, nodes of one CPU each, and a run on them in a thread."""

    def __init__(self, folder: Path) -> None:
        import ray
        from ray.cluster_utils import Cluster

        from sundog.storage.root import open_root
        from sundog.storage.runs import RunFolder

        self.root = open_root(str(folder / "root"))
        self.run = RunFolder(self.root, "r")
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": MEMORY}
        )
        ray.init(address=self.cluster.address, log_to_driver=False)
        self.folder, self.session = folder, ray._private.worker._global_node.get_session_dir_path()
        self.error: BaseException | None = None

    def node(self, market: str = ""):
        labels = {"labels": {MARKET: market}} if market else {}
        return self.cluster.add_node(num_cpus=1, object_store_memory=MEMORY, **labels)

    def taken(self) -> set[str]:
        """Nodes of which no CPU is free."""
        from ray._private.state import state

        free = state.available_resources_per_node()
        return {n for n in alive() if not free.get(n, {}).get("CPU") and "CPU" in capacities()[n]}

    def start(self, **changes) -> None:
        from sundog.runs.driver import open_folder
        from sundog.runs.train import run_training
        from sundog.spec.run import RunSpec

        fields = {
            "run": "r", "recipe": "slow:Slow", "workers": "1..2", "batch": 32, "micro_batch": 8,
            "steps": 100_000, "checkpoint": {"every": 10_000, "keep": 2}, **changes,
        }  # fmt: skip
        spec = self.spec = RunSpec.model_validate(fields)
        folder = open_folder(self.root, "r", "r")

        def work() -> None:
            try:
                run_training(spec, folder)
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()

    def record(self) -> dict:
        if self.error:
            raise self.error
        try:
            return self.run.record()
        except Exception:
            return {}

    def events(self, name: str) -> list[dict]:
        return [e for e in self.run.events() if e["event"] == name]

    def until(self, what, limit_s: float = 120.0):
        deadline = time.monotonic() + limit_s
        while not (found := what()):
            if self.error:
                raise self.error
            if time.monotonic() > deadline:
                print(json.dumps(self.run.events(), indent=1), self.record())
                raise AssertionError(f"it never happened: {what}")
            time.sleep(0.1)
        return found

    def working(self, workers: int, more_steps: int = 20) -> None:
        """Wait until this many workers have gone on by so many steps."""
        since = self.record().get("step") or 0
        self.until(
            lambda: (
                self.record().get("workers") == workers
                and (self.record().get("step") or 0) >= since + more_steps
            )
        )

    def stop_at(self) -> None:
        self.thread.join(240)
        if self.error:
            raise self.error
        assert not self.thread.is_alive()

    def same_as_undisturbed(self) -> None:
        """The final parameters are those of one process that nothing happened to, bit for bit."""
        import torch

        from sundog.runs.checkpoint import Checkpoints
        from sundog.runs.exchange import Alone
        from sundog.runs.loop import Loop
        from sundog.runs.recipe import resolve
        from sundog.runs.saver import unpack

        params = {**self.spec.params, "slow": 0}
        recipe = resolve("slow:Slow", self.folder)(data=None, **params)
        loop = Loop(self.spec, recipe)
        loop.join(Alone())
        assert loop.run().state == "finished"
        ended = unpack(Checkpoints(self.root, "runs/r/checkpoints").latest())
        whole = loop.model.state_dict()
        assert whole.keys() == ended["model"].keys()
        assert all(torch.equal(whole[name], ended["model"][name]) for name in whole)

    def close(self) -> None:
        import ray

        ray.shutdown()
        self.cluster.shutdown()


def notice(scene: Scene) -> None:
    """A notice: checkpoint, shrink at a step boundary, no step lost, grow when a node comes."""
    from sundog.rayapi.drain import Gcs
    from sundog.runs.verify import verify

    scene.node()
    second = scene.node()
    # After the nodes have started: they must not have it from their own environment.
    secret = os.environ["SECRET_HERE"] = uuid.uuid4().hex
    scene.start(steps=900, params={"asks": "KEY"}, secrets={"KEY": "env:SECRET_HERE"})
    scene.working(2)
    assert not scene.run.checkpoint_steps()
    Gcs(scene.cluster.address).drain(second.node_id, time.time() + 30, "spot notice")
    drained = scene.until(lambda: scene.events("run.drained"))[0]
    print(drained)
    [links] = scene.events("run.links")  # measured once, as the run began
    assert links["nodes"] == 2
    assert links["gbyte_s"] > 0
    assert drained["workers"] == [2, 1]
    assert drained["steps_back"] == 0
    assert {"parked", "formed", "stepped"} <= set(drained["stages"])
    told = scene.events("run.notice")[0]
    assert told["leaving"] == 1
    assert 0 < told["nodes"][second.node_id] <= 30
    saved = scene.events("run.checkpoint")
    assert saved, "no checkpoint inside the notice"
    assert saved[0]["step"] == drained["step"] - 1
    scene.working(1)
    # Nobody of the run is on the node any more, so Ray lets it go before its deadline.
    scene.until(lambda: second.node_id not in alive())
    scene.cluster.remove_node(second, allow_graceful=True)
    scene.node()
    grown = scene.until(lambda: scene.events("run.resized"))[0]
    print(grown)
    assert grown["workers"] == [1, 2]
    assert grown["steps_back"] == 0
    scene.stop_at()
    record = scene.record()
    assert record["state"] == "finished"
    assert [c["event"] for c in record["changes"]] == ["run.drained", "run.resized"]
    verdict = verify(scene.root, "r")
    assert (verdict.lost, verdict.duplicated, verdict.steps) == (0, 0, 900)
    assert verdict.worlds == (1, 2)
    scene.same_as_undisturbed()
    # Every worker, the standby too, had the secret; nothing that was stored or logged has it.
    for place in (Path(scene.folder, "root"), Path(scene.session)):
        for file in place.rglob("*"):
            if file.is_file():
                assert secret.encode() not in file.read_bytes(), file


def raylet(scene: Scene) -> None:
    """`kill -9` of a node's raylet: the other node's worker goes on from its own memory."""
    from sundog.runs.verify import verify

    scene.node()
    second = scene.node()
    scene.start(steps=900, max_failures=0)  # a lost node is no failure of the run
    scene.working(2)
    second.kill_raylet(check_alive=False)
    recovered = scene.until(lambda: scene.events("run.recovered"))[0]
    print(recovered)
    assert recovered["workers"] == [2, 1]
    assert recovered["steps_back"] <= 1
    scene.working(1)
    scene.node()
    print(scene.until(lambda: scene.events("run.resized"))[0])
    scene.stop_at()
    verdict = verify(scene.root, "r")
    assert (verdict.lost, verdict.duplicated, verdict.steps) == (0, 0, 900)
    scene.same_as_undisturbed()


def silence(scene: Scene) -> None:
    """A node from which nothing comes any more, no reset either: the survivor, which waits for it in the
    middle of a step, keeps its process and its state."""
    import psutil

    from sundog.runs.verify import verify

    scene.node()
    second = scene.node()
    scene.start(steps=600)
    scene.working(2)
    raylet = psutil.Process(second.all_processes["raylet"][0].process.pid)
    frozen = [raylet, *raylet.children(recursive=True)]
    for process in frozen:
        process.suspend()
    try:
        recovered = scene.until(lambda: scene.events("run.recovered"), 200)[0]
        print(recovered)
        assert recovered["workers"] == [2, 1]
        assert recovered["steps_back"] <= 1, "it began from a checkpoint"
        scene.working(1)
    finally:
        for process in frozen:
            process.kill()
    scene.stop_at()
    verdict = verify(scene.root, "r")
    assert (verdict.lost, verdict.duplicated, verdict.steps) == (0, 0, 600)
    scene.same_as_undisturbed()


def notice_to_all(scene: Scene) -> None:
    """Every node under notice: the run saves, computes on while they live, and goes on elsewhere."""
    from sundog.rayapi.drain import Gcs
    from sundog.runs.verify import verify

    nodes = [scene.node(), scene.node()]
    scene.start(steps=900, workers=2)
    scene.working(2)
    for one in nodes:
        Gcs(scene.cluster.address).drain(one.node_id, time.time() + 12, "spot notice")
    scene.until(lambda: scene.events("run.checkpoint"))
    assert not scene.events("run.drained")
    time.sleep(10)
    assert len(scene.events("run.checkpoint")) >= 2, "no second checkpoint before the deadline"
    for one in nodes:
        scene.cluster.remove_node(one, allow_graceful=False)
    for _ in range(2):
        scene.node()
    recovered = scene.until(lambda: scene.events("run.recovered"))[0]
    print(recovered)
    scene.stop_at()
    verdict = verify(scene.root, "r")
    assert (verdict.lost, verdict.duplicated, verdict.steps) == (0, 0, 900)


def on_demand(scene: Scene) -> None:
    """A run that must not be on spot nodes stays off them, though they are free."""
    spot, steady = scene.node("spot"), scene.node("on-demand")
    scene.start(steps=600, market="on-demand")
    scene.working(1, 100)
    assert scene.taken() == {steady.node_id}, spot.node_id
    assert scene.record()["workers"] == 1
    scene.stop_at()
    assert not scene.events("run.resized")


def spot_first(scene: Scene) -> None:
    """A run is on a spot node while there is one, then wherever there is room."""
    steady, spot = scene.node("on-demand"), scene.node("spot")
    scene.start(steps=600, workers=1, market="spot-first")
    scene.working(1)
    assert scene.taken() == {spot.node_id}
    spot.kill_raylet(check_alive=False)
    print(scene.until(lambda: scene.events("run.recovered"))[0])
    scene.until(lambda: scene.taken() == {steady.node_id})
    scene.stop_at()


def capacities() -> dict[str, dict]:
    import ray

    return {n["NodeID"]: n["Resources"] for n in ray.nodes()}


def alive() -> set[str]:
    import ray

    return {n["NodeID"] for n in ray.nodes() if n["Alive"]}


if __name__ == "__main__":
    scene = Scene(Path(sys.argv[2]))
    try:
        scenes = (notice, raylet, silence, notice_to_all, on_demand, spot_first)
        {s.__name__: s for s in scenes}[sys.argv[1]](scene)
    finally:
        scene.close()
