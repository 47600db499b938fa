"""The command line: every command teaches by example, refuses wrong input with a fix and no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from sundog.cli import app, main


def commands() -> dict[str, typer.main.TyperCommand]:
    found: dict[str, typer.main.TyperCommand] = {}

    def walk(command: object, path: str) -> None:
        children = getattr(command, "commands", None)
        if children is None:
            found[path] = command
        else:
            for name, child in children.items():
                walk(child, f"{path} {name}".strip())

    walk(typer.main.get_command(app), "")
    return found


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return int(stop.value.code or 0), captured.out, captured.err


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which nothing was started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUNDOG_HOME", str(tmp_path / ".sundog"))
    return tmp_path


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_helps_by_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *name.split(), "--help")
    assert code == 0
    assert f"Example: sundog {name}" in " ".join(out.split()) or 'eval "$(sundog env)"' in out


@pytest.mark.parametrize("name", sorted(set(commands()) - {"up", "cluster compile"}))
def test_every_command_speaks_json(name: str) -> None:
    assert any("--json" in p.opts for p in commands()[name].params), name


def test_a_wrong_command_or_option_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "trane")[0] == 2
    assert run(capsys, "doctor", "--jsn")[0] == 2
    code, _, err = run(capsys, "schema", "rnu")
    assert code == 2
    assert "run, sweep" in err


def test_schema_is_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "schema", "run")
    assert code == 0
    schema = json.loads(out)
    assert {"run", "recipe", "workers", "register"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False


def test_a_typo_in_a_spec_needs_no_cluster_to_be_found(
    nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (nowhere / "run.yaml").write_text("run: a\nrecipe: b:C\nsteps: 5\nworkrs: 2\n")
    code, _, err = run(capsys, "train", "run.yaml")
    assert code == 2
    assert "run.yaml:4: workrs: unknown key" in err


def test_no_cluster_says_how_to_start_one(
    nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (nowhere / "run.yaml").write_text("run: a\nrecipe: b:C\nsteps: 5\n")
    code, _, err = run(capsys, "train", "run.yaml")
    assert code == 1
    assert "sundog up" in err
    code, out, _ = run(capsys, "env", "--json")
    assert code == 1
    assert "sundog up" in json.loads(out)["fix"]


def test_no_gateway_says_where_it_looked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUNDOG_GATEWAY", "http://127.0.0.1:9")
    code, _, err = run(capsys, "services")
    assert code == 1
    assert "no gateway at http://127.0.0.1:9" in err
    assert "SUNDOG_GATEWAY=" in err


def test_no_root_says_how_to_name_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "models", "list")
    assert code == 2
    assert "SUNDOG_ROOT" in err


def test_a_spec_outside_the_working_directory_is_refused(
    nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (nowhere / "inner").mkdir()
    (nowhere / "run.yaml").write_text("run: a\nrecipe: b:C\nsteps: 5\n")
    code, _, err = run(capsys, "train", "../run.yaml", "--working-dir", "inner")
    assert code == 2
    assert "outside the working directory" in err


def test_init_scaffolds_once_and_never_overwrites(
    nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "init", "mine")[0] == 0
    assert (nowhere / "mine" / "recipe.py").is_file()
    (nowhere / "mine" / "run.yaml").write_text("my own words")
    code, _, err = run(capsys, "init", "mine")
    assert code == 1
    assert "already there" in err
    assert (nowhere / "mine" / "run.yaml").read_text() == "my own words"


def test_init_into_a_file_is_refused(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (nowhere / "mine").write_text("a file")
    code, _, err = run(capsys, "init", "mine")
    assert code == 1
    assert "mine cannot be written" in err


def test_up_is_refused_where_one_is_up_whatever_the_environment_says(
    nowhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sundog.cli import machine
    from sundog.rayapi.local import Endpoints, write_record

    there = Endpoints("127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3", "", "", pid=4)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", there.dashboard)
    monkeypatch.setattr(machine, "read_record", lambda home: there)
    for options in ([], ["--root", (nowhere / "root").as_uri()]):
        code, _, err = run(capsys, "up", *options)
        assert code == 1
        assert "already up" in err
        assert "SUNDOG_HOME" in err
    monkeypatch.undo()
    write_record(nowhere / ".sundog", there)
    record = nowhere / ".sundog" / "up.json"
    record.write_text(record.read_text().replace('"format": 1', '"format": 2'))
    monkeypatch.setenv("SUNDOG_HOME", str(nowhere / ".sundog"))
    code, _, err = run(capsys, "up")
    assert code == 1
    assert "later Sundog" in err


def test_what_init_writes_is_valid(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sundog.control.serve_files import read_services
    from sundog.spec import RunSpec, load

    run(capsys, "init", "mine")
    assert load("mine/run.yaml", RunSpec).recipe == "recipe:Curve"
    assert [s.service for s in read_services("mine/service.yaml")] == ["curve"]


def test_models_of_an_empty_root(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = (nowhere / "root").as_uri()
    code, out, _ = run(capsys, "models", "list", "--root", root, "--json")
    assert (code, json.loads(out)) == (0, [])
    code, _, err = run(capsys, "models", "show", "digits@1", "--root", root)
    assert code == 1
    assert "digits" in err


def test_ingest_says_in_json_what_it_wrote(
    nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (nowhere / "rows.csv").write_text("n\n" + "\n".join(str(i) for i in range(30)))
    root = (nowhere / "root").as_uri()
    code, out, _ = run(capsys, "ingest", "rows", "rows.csv", "--root", root, "--json")
    assert (code, json.loads(out)["data"]) == (0, "rows@1")
    assert sum(json.loads(out)["rows"].values()) == 30


def test_a_question_with_nobody_to_answer_is_refused(
    nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sundog.cli.output import confirm
    from sundog.errors import SundogError

    with pytest.raises(SundogError, match="--yes"):
        confirm("Delete it?", yes=False)
    confirm("Delete it?", yes=True)


def test_what_is_said_keeps_its_line_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    from sundog.cli.output import Output

    Output(as_json=False).say("run.yaml:100: workrs: unknown key")
    assert "run.yaml:100: workrs" in capsys.readouterr().out


def test_a_run_is_shown_with_its_data_and_the_model_it_registered(
    nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sundog.storage.root import open_root
    from sundog.storage.runs import new_run

    root = (nowhere / "root").as_uri()
    new_run(open_root(root), "curve").update(state="finished", data="points@2", model="curve@7")
    code, out, _ = run(capsys, "runs", "show", "curve-1", "--root", root)
    assert code == 0
    assert "points@2" in out
    assert "curve@7" in out


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """What was submitted or cancelled, with nobody there to do it."""
    from sundog.cli import connection, jobs
    from sundog.rayapi.local import Endpoints
    from sundog.runs import client

    calls: list[dict[str, object]] = []
    there = Endpoints("127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3", "", "")
    for module in (connection, jobs):
        monkeypatch.setattr(module, "cluster", lambda: there)
    monkeypatch.setattr(jobs, "quiet", lambda: None)
    monkeypatch.setattr(client, "submit", lambda what, **more: calls.append({"do": what, **more}))
    monkeypatch.setattr(client, "cancel", lambda what, **more: calls.append({"do": what, **more}))
    return calls


def test_a_submitted_job_brings_its_requirements(
    nowhere: Path, capsys: pytest.CaptureFixture[str], submitted: list[dict[str, object]]
) -> None:
    run_yaml = "run: a\nrecipe: b:C\nsteps: 5\nrequirements: [einops]\n"
    (nowhere / "run.yaml").write_text(run_yaml)
    inner = "".join(f"  {line}\n" for line in run_yaml.splitlines())
    (nowhere / "sweep.yaml").write_text(
        f"sweep: s\nrun:\n{inner}space: {{lr: {{choice: [1]}}}}\nmetric: m\n"
    )
    for kind, file in (("train", "run.yaml"), ("sweep", "sweep.yaml")):
        assert run(capsys, kind, file, "--detach")[0] == 0
        assert submitted[-1]["do"] == f"python -m sundog {kind} {file}"
        assert submitted[-1]["requirements"] == ("einops",)


def test_a_run_whose_driver_was_killed_can_be_cancelled(
    nowhere: Path, capsys: pytest.CaptureFixture[str], submitted: list[dict[str, object]]
) -> None:
    from sundog.storage.root import open_root
    from sundog.storage.runs import new_run

    root = (nowhere / "root").as_uri()
    folder = new_run(open_root(root), "curve")
    folder.update(state="running", job_id="job-7")
    assert run(capsys, "runs", "cancel", "curve-1", "--yes", "--root", root)[0] == 0
    assert submitted[-1]["do"] == "job-7"
    assert folder.record()["state"] == "cancelled"
    code, _, err = run(capsys, "runs", "cancel", "curve-1", "--yes", "--root", root)
    assert code == 1
    assert "is not running" in err


def test_a_model_from_elsewhere_is_imported_verified_and_deleted_only_when_unused(
    nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sundog.storage.models import Registry
    from sundog.storage.root import open_root

    root = (nowhere / "root").as_uri()
    (nowhere / "rules").mkdir()
    (nowhere / "rules" / "rules.py").write_text("class Model:\n    predict = dict\n")
    tensor = "[{name: x, datatype: FP32, shape: [-1, 2]}]"
    (nowhere / "signature.yaml").write_text(f"inputs: {tensor}\noutputs: {tensor}\n")
    given = ["models", "import", "rules", "rules", "--root", root]
    code, _, err = run(capsys, *given)
    assert code == 2
    assert "--entry module:Class" in err
    given += ["--entry", "rules:Model", "--signature", "signature.yaml"]
    assert run(capsys, *given, "--alias", "champion")[0] == 0
    assert run(capsys, *given)[0] == 0
    delete = ["models", "delete", "rules@1", "--yes", "--root", root]
    registry = Registry(open_root(root))
    registry.hold("rules", 1, "service:rules")
    code, _, err = run(capsys, *delete)
    assert code == 1
    assert "service:rules needs it" in err
    assert "undeploy" in err
    registry.release("rules", 1, "service:rules")
    code, _, err = run(capsys, *delete)
    assert code == 1
    assert "models alias rules champion" in err
    assert run(capsys, "models", "alias", "rules", "champion", "2", "--root", root)[0] == 0
    assert run(capsys, *delete)[0] == 0
    [stored] = (nowhere / "root" / registry.get("rules@2").files_at).iterdir()
    stored.write_text(stored.read_text().replace("dict", "list"))
    code, _, err = run(capsys, "models", "verify", "rules@champion", "--root", root)
    assert code == 1
    assert "is damaged" in err


def test_logs_are_of_one_rank_or_of_all_and_followed_to_the_end(
    nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sundog.storage.root import open_root
    from sundog.storage.runs import new_run

    root = (nowhere / "root").as_uri()
    folder = new_run(open_root(root), "curve")
    for rank in (0, 1):
        folder.append_log(rank, f"I am {rank}\n")
    folder.update(state="finished")
    logs = ["logs", "curve-1", "--root", root]
    assert run(capsys, *logs)[1] == "[0] I am 0\n[1] I am 1\n"
    assert run(capsys, *logs, "--follow", "--rank", "1")[1] == "I am 1\n"
    code, _, err = run(capsys, *logs, "--rank", "7")
    assert code == 1
    assert "no logs of rank 7" in err
