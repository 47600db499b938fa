"""Loops that are not ours: the example with our parts, and a script that knows nothing of us."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from several_nodes import run_alone

pytestmark = pytest.mark.timeout(600)
REPO = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

SCRIPT = """
import json, os, pathlib, signal, sys, time

state = pathlib.Path(sys.argv[1])
step = json.loads(state.read_text())["step"] if state.exists() else 0
print("begins at", step, "restart", os.environ["SUNDOG_RESTART"], flush=True)

def save(*_):
    state.write_text(json.dumps({"step": step}))
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
while step < 30:
    step += 1
    if step == 10 and os.environ["SUNDOG_RESTART"] == "0":
        state.write_text(json.dumps({"step": step}))
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(sys.argv[2]))
print("done at", step, flush=True)
"""

# It ends only where it was not the first: a busy machine may be late with the notice.
ENDLESS = SCRIPT.replace("step == 10", "False").replace(
    "while step < 30", 'while step < 30 or os.environ["SUNDOG_RESTART"] == "0"'
)


def job(local_ray, folder: Path, entrypoint: str) -> tuple[int, str]:
    done = subprocess.run(
        [BIN / "ray", "job", "submit", "--working-dir", ".", "--", *entrypoint.split()],
        cwd=folder, env=local_ray.environment(), capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("own")
    shutil.copytree(REPO / "jobs", place / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "theirs.py").write_text(SCRIPT)
    return place


def result(text: str) -> dict:
    line = next(line for line in text.splitlines() if "RESULT " in line)
    return json.loads(line[line.index("RESULT ") + 7 :])


@pytest.mark.long
def test_the_example_goes_on_with_another_number_of_workers(local_ray, folder):
    example = "python jobs/examples/own_loop.py --every 40"
    code, text = job(local_ray, folder, f"{example} --name mine --workers 2 --steps 60")
    assert code == 0, text
    first = result(text)
    assert (first["began"], first["step"], first["world"]) == (0, 60, 2)
    code, text = job(local_ray, folder, f"{example} --name mine --workers 1 --steps 90")
    assert code == 0, text
    second = result(text)
    assert (second["began"], second["step"], second["world"]) == (60, 90, 1)
    assert second["accuracy"] > 0.9
    assert 0 < second["goodput"] <= 1
    assert second["seconds"]["startup"] > 0


@pytest.mark.slow
def test_a_script_that_dies_is_started_again_and_goes_on(local_ray, folder, tmp_path):
    entry = f"python jobs/guard.py --restarts 1 -- python theirs.py {tmp_path}/state.json 0.01"
    code, text = job(local_ray, folder, entry)
    assert code == 0, text
    assert "begins at 0 restart 0" in text
    assert "ended with code -9: restart 1 of 1" in text
    assert "begins at 10 restart 1" in text
    assert "done at 30" in text


@pytest.mark.long
def test_hugging_face_s_trainer_goes_on_from_its_own_checkpoint(local_ray, folder, tmp_path):
    out, script = tmp_path / "out", "jobs/examples/hf_trainer.py"
    killed: list[str] = []

    def strike() -> None:
        """kill -9 of the script, and not of its guard, once it has saved a checkpoint."""
        deadline = time.monotonic() + 300
        while not killed and time.monotonic() < deadline:
            time.sleep(0.1)
            saved = sorted(out.glob("checkpoint-*/trainer_state.json"))
            for process in local_ray.processes() if saved else ():
                with suppress(psutil.Error):
                    if process.cmdline()[1:2] == [script]:
                        process.kill()
                        killed.append(saved[-1].parent.name)

    entry = f"python jobs/guard.py --restarts 1 -- python {script} --output_dir {out}"
    with ThreadPoolExecutor() as pool:
        striking = pool.submit(strike)
        code, text = job(local_ray, folder, f"{entry} --max_steps 160")
        striking.result()
    assert code == 0, text
    assert killed
    assert "begins with nothing" in text
    assert "restart 1 of 1" in text
    assert "begins with checkpoint-" in text
    assert "done at 160" in text


def test_a_script_that_always_fails_ends_the_job_with_its_word(local_ray, folder):
    code, text = job(local_ray, folder, "python jobs/guard.py --restarts 0 -- python nothing.py")
    assert code == 1
    assert "nothing.py" in text
    assert "after 0 restarts" in text
    assert "Traceback" not in text


def cluster_scenario(folder: Path) -> None:
    """Two nodes with room for one script each: the one that it is on gets a notice."""
    import ray
    from ray.cluster_utils import Cluster

    from sundog.rayapi.drain import Gcs
    from sundog.runs.guard import Guard, Guarded

    memory = 128 * 2**20
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": memory}
    )
    for _ in range(2):
        made.add_node(num_cpus=1, object_store_memory=memory)
    ray.init(address=made.address)
    said: list[str] = []
    gcs = Gcs(made.address)

    def say(line: str) -> None:
        said.append(line)
        if line == "begins at 0 restart 0":
            busy = next(n for n in gcs.nodes() if n.used)
            gcs.drain(busy.node_id, None, "test")

    (folder / "theirs.py").write_text(ENDLESS)
    command = (sys.executable, str(folder / "theirs.py"), str(folder / "state.json"), "0.2")
    try:
        Guard(Guarded(command, restarts=0), say=say).run()
    finally:
        ray.shutdown()
        made.shutdown()
    print("\n".join(said))
    assert any("a notice to its node" in line for line in said)
    later = next(line for line in said if line.startswith("begins at") and line.endswith("1"))
    assert later != "begins at 0 restart 1"  # it saved at SIGTERM and went on from there
    assert said[-1].startswith("done at")


@pytest.mark.long
def test_a_notice_moves_the_script_to_another_node(tmp_path):
    run_alone(__file__, str(tmp_path), limit_s=300)


if __name__ == "__main__":
    cluster_scenario(Path(sys.argv[1]))
