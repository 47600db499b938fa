"""What the head says over SSH, how it is asked, and what a person sees when it is not reached."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sundog.capacity import onhead
from sundog.capacity.check import read_spec
from sundog.capacity.head import Head
from sundog.capacity.state_file import ledger_path, write_state
from sundog.clock import ManualClock
from sundog.errors import ClusterError
from sundog.ledger import Entry, FileLedger
from sundog.rayapi.drain import RayNode

SPEC = Path(__file__).parents[3] / "cluster-configs" / "specs" / "aws-train.yaml"
HEAD = RayNode("a" * 56, "i-head", "head", "RUNNING")
BUSY = RayNode("b" * 56, "i-1", "a10g", "RUNNING", 0.75)


class Ray:
    def __init__(self, away: bool = False) -> None:
        self.away, self.drains = away, []

    def nodes(self) -> list[RayNode]:
        if self.away:
            raise ClusterError("the GCS is away")
        return [HEAD, BUSY]

    def drain(self, node_id: str, deadline_s: float | None, why: str) -> bool:
        self.drains.append((node_id, deadline_s))
        return True


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUNDOG_STATE_DIR", str(tmp_path))


def test_a_report_has_the_providers_state_and_each_nodes_use() -> None:
    write_state("train", {"waiting": {"a10g": {"state": "refused"}}})
    said = onhead.report("train", Ray())
    assert said["used"] == {"i-head": None, "i-1": 0.75}
    assert said["state"]["waiting"]["a10g"]["state"] == "refused"
    away = onhead.report("train", Ray(away=True))
    assert away["state"] == said["state"]
    assert away["error"] == "the GCS is away"


def test_a_node_is_drained_by_its_instance_or_ray_id_and_the_head_never() -> None:
    ray = Ray()
    assert onhead.drain("i-1", ray, ManualClock(1000.0), 60.0) == "b" * 56
    assert onhead.drain("b" * 56, ray, ManualClock(1000.0), 60.0) == "b" * 56
    assert ray.drains == [("b" * 56, 1060.0)] * 2
    with pytest.raises(ClusterError, match="head cannot be drained"):
        onhead.drain("i-head", ray)
    with pytest.raises(ClusterError, match="i-9") as caught:
        onhead.drain("i-9", ray)
    assert "i-1" in caught.value.fix


def test_half_a_state_file_is_no_state(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('{"waiting": ')
    assert onhead.report("train", Ray())["state"] is None


def test_a_full_disk_is_left_no_fuller_by_a_state_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_state("train", {"waiting": {}})

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_state("train", {"waiting": {"a10g": {}}})
    assert [p.name for p in tmp_path.iterdir()] == ["train.json"]
    assert onhead.report("train", Ray())["state"] == {"waiting": {}}


def test_the_head_says_what_its_own_ledger_costs(capsys: pytest.CaptureFixture[str]) -> None:
    about = {"pool": "a10g", "market": "spot", "shape": "g5.xlarge"}
    ledger = FileLedger(ledger_path("train"))
    ledger.append(Entry("launch", 0.0, "i-1", "train", 0.5, about))
    ledger.append(Entry("terminate", 7200.0, "i-1", "train"))
    assert onhead.main(["cost", "train", "--by", "node-type"]) == 0
    said = json.loads(capsys.readouterr().out.strip().removeprefix(onhead.MARK))
    assert said["cost"] == [
        {"key": "a10g spot g5.xlarge", "node_hours": 2.0, "usd": 1.0, "unpriced_hours": 0.0}
    ]
    assert onhead.main(["cost", "another"]) == 0
    assert '"cost": []' in capsys.readouterr().out


def head(code: int, out: str, err: str = "") -> tuple[Head, list[list[str]]]:
    asked: list[list[str]] = []

    def run(command: list[str], limit_s: float) -> tuple[int, str, str]:
        asked.append(command)
        return code, out, err

    return Head(Path("x.yaml"), read_spec(SPEC).spec, run), asked


def test_the_answer_is_found_among_what_ssh_prints() -> None:
    answer = onhead.MARK + json.dumps({"used": {"i-1": 0.5}})
    there, asked = head(0, f"Loaded cached provider configuration\n{answer}\nShared connection\n")
    assert there.ask("report", "a b") == {"used": {"i-1": 0.5}}
    assert asked[0][1:3] == ["exec", "x.yaml"]
    assert "RAY_AUTH_MODE" in asked[0][3]
    assert asked[0][3].endswith("-m sundog.capacity.onhead report 'a b'")


@pytest.mark.parametrize(
    ("code", "out", "err", "said"),
    [(255, "", "ssh: connect to host: timed out\n", "timed out"), (0, "hello", "", "no answer"),
     (0, onhead.MARK + "{", "", "broken"), (1, "", "", "ended with 1")],
)  # fmt: skip
def test_a_head_that_is_not_reached_is_an_error_with_a_reason(
    code: int, out: str, err: str, said: str
) -> None:
    with pytest.raises(ClusterError, match=said):
        head(code, out, err)[0].ask("report", "train")


def test_the_command_on_the_head_always_answers_with_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise ClusterError("no Ray runs on this machine", "start it")

    monkeypatch.setattr(onhead, "head_address", none)
    write_state("train", {"waiting": {}})
    for words in (["report", "train"], ["drain", "i-1"]):
        assert onhead.main(words) == 0
        line = capsys.readouterr().out.strip()
        assert line.startswith(onhead.MARK)
        said = json.loads(line.removeprefix(onhead.MARK))
        assert said["error"] == "no Ray runs on this machine"
        assert words[0] == "drain" or said["state"] == {"waiting": {}}
