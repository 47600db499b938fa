"""sundog cluster at the command line: prices, plan, compile's wheel, and errors with a way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from sundog.capacity import account, wheel
from sundog.cli import cluster_nodes, main
from sundog.ledger import Entry, RootLedger
from sundog.market.prices import Price
from sundog.market.shapes import Shape
from sundog.storage.root import open_root

SPEC = Path(__file__).parents[3] / "cluster-configs" / "specs" / "aws-train.yaml"


def sundog(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    return int(caught.value.code or 0)


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The committed spec in a folder of its own, on a machine without a cloud account."""
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "train.yaml").write_text(SPEC.read_text())
    return "specs/train.yaml"


def todays(path: object, clock: object = None) -> account.Today:
    from datetime import date

    day = date(2099, 1, 1)
    new = Shape("aws", "g9.xlarge", "g9", 4, 16.0, "A10G", 1, 24, "amd64")
    prices = [
        Price("aws", "spot", "us-east-1", "use1-az1", "g9.xlarge", 0.105, day, "account"),
        Price("aws", "on-demand", "us-east-1", "", "g9.xlarge", 0.9, day, "account"),
        Price("aws", "spot", "us-east-1", "use1-az1", "g5.xlarge", 0.111, day, "account"),
        Price("aws", "on-demand", "us-east-1", "", "g5.xlarge", 1.006, day, "account"),
        Price("aws", "spot", "us-east-1", "use1-az2", "g5.xlarge", 3.0, day, "account"),
    ]
    return account.Today(prices, [new])


def test_refreshed_prices_are_saved_planned_with_and_compiled_in(
    spec: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(account, "today", todays)
    assert sundog("cluster", "prices", spec, "-o", "p.json", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["spot"], said["on_demand"], said["taken"]) == (3, 2, 4)
    assert said["shapes"] == ["g9.xlarge"]
    assert ["above on-demand" in reason for reason in said["refused"]] == [True]
    assert sundog("cluster", "plan", spec, "--prices", "p.json", "--json") == 0
    pools = json.loads(capsys.readouterr().out)["pools"]
    first = next(p for p in pools if p["name"] == "a10g")["rungs"][0]
    assert (first["usd_hour"], first["shape"]) == (0.105, "g9.xlarge"), "newer than this Sundog"
    assert sundog("cluster", "compile", spec, "--prices", "p.json", "--no-wheel") == 0
    assert "usd_hour: 0.111" in Path("train.yaml").read_text()
    assert "shape: g9.xlarge" in Path("train.yaml").read_text()


def test_a_plan_says_why_it_does_not_know_the_quotas(
    spec: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sundog("cluster", "plan", spec) == 0
    assert "what the account has is not known: no AWS credentials here" in capsys.readouterr().out
    monkeypatch.setattr(
        account,
        "allowed",
        lambda spec: account.Allowed({("G and VT", "spot"): 64, ("P5", "spot"): 0}),
    )
    assert sundog("cluster", "plan", spec) == 0
    said = capsys.readouterr().out
    assert "quota P5 spot: 384 vCPUs at max, the account has 0, ask for 384 more" in said
    assert "re-work from a prior of 1 interruption in 20 node-hours" in said


def test_compile_says_where_the_nodes_get_sundog_from(
    spec: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sundog("cluster", "compile", spec) == 0  # no repository here: nothing can be built
    assert "cluster-configs/.wheel/*.whl must be there before `ray up`" in capsys.readouterr().err
    monkeypatch.setattr(wheel, "has_project", lambda: True)
    monkeypatch.setattr(wheel, "build_wheel", lambda: Path("cluster-configs/.wheel/x.whl"))
    assert sundog("cluster", "compile", spec) == 0
    assert "the nodes' Sundog: built cluster-configs/.wheel/x.whl" in capsys.readouterr().out
    assert sundog("cluster", "compile", spec, "-o", "-") == 0
    assert "wheel/x.whl" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status", "specs/train.yaml"], "sundog cluster compile specs/train.yaml"),
        (["compile", "specs/train.yaml", "-o", "none/x.yaml"], "none/x.yaml could not be written"),
        (["drain", "specs/train.yaml", "i-1", "--yes"], "sundog cluster compile"),
        (["logs", "specs/train.yaml"], "sundog cluster compile"),
        (["up", "specs/train.yaml", "--yes"], "terraform output root"),
        (["plan", "specs/train.yaml", "--prices", "none.json"], "no such price file"),
        (["prices", "specs/none.yaml", "-o", "p.json"], "none.yaml"),
    ],
)
def test_what_is_missing_is_named_with_the_way_out(
    spec: str, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert sundog("cluster", *words) in (1, 2)
    assert said in capsys.readouterr().err


def test_doctor_says_that_a_new_account_may_start_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from sundog.cli import checkup
    from sundog.clouds import aws_prices
    from sundog.clouds.base import AuthRefused

    def answers(said: dict[tuple[str, str], int] | Exception) -> None:
        def ask(region: str) -> dict[tuple[str, str], int]:
            if isinstance(said, Exception):
                raise said
            return said

        monkeypatch.setattr(aws_prices, "allowed_vcpus", ask)

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    answers({("P", "spot"): 0, ("G and VT", "spot"): 0, ("Standard", "on-demand"): 5})
    found = checkup._cloud_account()
    assert (found.level, "no GPU node can start" in found.fix) == ("warn", True)
    answers({("P", "spot"): 0, ("G and VT", "spot"): 64})
    assert checkup._cloud_account().level == "ok"
    answers(AuthRefused("UnauthorizedOperation"))
    assert "servicequotas:GetServiceQuota" in checkup._cloud_account().fix


def test_cost_of_a_cluster_comes_from_its_root_or_else_from_its_head(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = yaml.safe_load(Path(spec).read_text())
    data.pop("root", None)
    Path(spec).write_text(yaml.safe_dump(data))
    asked: list[tuple[str, ...]] = []

    class Head:
        def ask(self, *words: str) -> dict[str, object]:
            asked.append(words)
            row = {"key": "a10g spot g5.xlarge", "node_hours": 2.0, "usd": 1.0, "unpriced_hours": 0}
            return {"cost": [row]}

    monkeypatch.setattr(cluster_nodes, "head_of", lambda file: Head())
    assert sundog("cost", "--by", "node-type", "--cluster", spec) == 0
    assert "a10g spot g5.xlarge" in capsys.readouterr().out
    assert asked == [("cost", data["cluster"], "--by", "node-type")]

    root = f"file://{tmp_path / 'root'}"
    Path(spec).write_text(yaml.safe_dump(data | {"root": root}))
    ledger = RootLedger(open_root(root))
    about = {"pool": "a10g", "market": "spot", "shape": "g5.xlarge"}
    for cluster in (data["cluster"], "another"):
        ledger.append(Entry("launch", 0.0, f"i-{cluster}", cluster, 0.5, about))
        ledger.append(Entry("terminate", 3600.0, f"i-{cluster}", cluster))
    assert sundog("cost", "--cluster", spec, "--json") == 0
    [line] = json.loads(capsys.readouterr().out)
    assert (line["node_hours"], line["usd"]) == (1.0, 0.5), "of this cluster only"
    assert sundog("cost", "--root", root, "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["node_hours"] == 2.0
    assert len(asked) == 1


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What `ray` was asked to do; nothing is started."""
    from sundog.cli import clusters

    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(clusters, "_ray", lambda *words: asked.append(words))
    return asked


def test_down_ends_what_was_started_whatever_has_become_of_the_spec(
    spec: str, ray: list[tuple[str, ...]]
) -> None:
    assert sundog("cluster", "compile", spec, "--no-wheel") == 0
    started = Path("train.yaml").read_text() + "# with other prices\n"
    Path("train.yaml").write_text(started)
    Path(spec).write_text(Path(spec).read_text().replace("us-east-1", "us-est-1"))
    assert sundog("cluster", "down", spec, "--yes") == 0
    assert sundog("cluster", "down", "train.yaml", "--yes") == 0
    assert ray == [("down", "--yes", "train.yaml")] * 2
    assert Path("train.yaml").read_text() == started


KUBERAY = SPEC.with_name("kuberay.yaml")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["up", "--yes"], "kubectl apply -f k8s.yaml"),
        (["down", "--yes"], "kubectl delete -f k8s.yaml"),
        (["status"], "kubectl get raycluster"),
        (["join"], "kubectl get raycluster"),
    ],
)
def test_a_cluster_of_kubernetes_is_not_rays_to_start(
    spec: str, ray: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str],
    words: list[str], says: str,
) -> None:  # fmt: skip
    Path("specs/k8s.yaml").write_text(KUBERAY.read_text())
    assert sundog("cluster", "compile", "specs/k8s.yaml") == 0
    first, *rest = words
    assert sundog("cluster", first, "specs/k8s.yaml", *rest) == 1
    assert says in capsys.readouterr().err
    assert ray == []


@pytest.mark.parametrize("command", ["status", "prices", "join"])
def test_a_profile_that_is_not_there_is_named(
    spec: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert sundog("cluster", "compile", spec, "--no-wheel") == 0
    monkeypatch.setenv("AWS_PROFILE", "nope")
    more = {"prices": ["-o", "p.json"], "status": ["--tags-only"]}.get(command, [])
    assert sundog("cluster", command, spec, *more) == 1
    said = capsys.readouterr().err
    assert "nope" in said
    assert "list-profiles" in said
    assert "Traceback" not in said


def test_doctor_names_a_profile_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from sundog.cli import checkup

    monkeypatch.setenv("AWS_PROFILE", "nope")
    found = checkup._cloud_account()
    assert (found.level, "list-profiles" in found.fix) == ("fail", True)


def test_a_plan_says_where_quotas_of_other_clouds_are(
    spec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("specs/gcp.yaml").write_text(SPEC.with_name("gcp.yaml").read_text())
    assert sundog("cluster", "plan", "specs/gcp.yaml") == 0
    assert "IAM & Admin" in capsys.readouterr().out
