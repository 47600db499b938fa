"""Errors of a spec name the file, the line, the key and the nearest valid one."""

from __future__ import annotations

from pathlib import Path

import pytest

from sundog.errors import SpecError
from sundog.spec import RunSpec, ServiceSpec, SweepSpec, load, parse

GOOD = "run: digits\nrecipe: jobs.recipes.digits:Digits\nsteps: 600\n"


def fault(text: str, model: type = RunSpec) -> str:
    with pytest.raises(SpecError) as caught:
        parse(text, model, "spec.yaml")
    return str(caught.value)


def test_a_good_spec_parses_with_its_units() -> None:
    spec = parse(
        GOOD + "workers: 2..8\nresources: {gpu: A10G, memory: 16GiB}\nmax_usd: $5\n"
        "checkpoint: {every: 10min, keep: 3}\nmax_time: 2h\n",
        RunSpec,
    )
    assert (spec.workers.low, spec.workers.high) == (2, 8)
    assert spec.resources.gpus == 1
    assert spec.resources.memory == 16 * 2**30
    assert spec.max_usd == 5
    assert spec.checkpoint.every == "600s"
    assert spec.max_time == 7200


def test_an_unknown_key_names_line_and_nearest() -> None:
    said = fault(GOOD + "workrs: 2\n")
    assert "spec.yaml:4: workrs: unknown key" in said
    assert "did you mean 'workers'?" in said


def test_an_unknown_nested_key_names_its_own_neighbours() -> None:
    said = fault(GOOD + "resources:\n  cpus: 1\n  gpuss: 2\n")
    assert "spec.yaml:6: resources.gpuss: unknown key" in said
    assert "did you mean 'gpus'?" in said


def test_all_faults_are_told_at_once() -> None:
    said = fault("run: Digits!\nrecipe: nowhere\nsteps: -1\n")
    assert "spec.yaml:1: run:" in said
    assert "spec.yaml:2: recipe:" in said
    assert "spec.yaml:3: steps:" in said


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("precision: fp31", "did you mean 'fp32'?"),
        ("checkpoint: {every: 7 parsecs}", "write auto, 200 steps or 10min"),
        ("resources: {memory: 16 gigs}", "write 512MiB, 16GiB or 2TB"),
        ("workers: 8..2", "write 2..8"),
        ("workers: 0", "at least one"),
        ("max_usd: lots", "write $5"),
        ("register: {as: digits, if: loss is low}", "write one comparison"),
        ("batch: 100\nmicro_batch: 64", "does not divide batch 100"),
        ("epochs: 3", "exactly one of steps and epochs"),
        ("steps: 5", "given twice"),
    ],
)
def test_a_bad_value_says_what_to_write(line: str, hint: str) -> None:
    assert hint in fault(GOOD + line + "\n")


@pytest.mark.parametrize("written", ["{TOKEN: hunter2}", "{TOKEN: [hunter2]}", "hunter2"])
def test_a_secret_is_never_echoed(written: str) -> None:
    said = fault(GOOD + f"secrets: {written}\n")
    assert "spec.yaml:" in said
    assert "secrets" in said
    assert "hunter2" not in said


def test_a_missing_key_is_described() -> None:
    said = fault("recipe: a:B\nsteps: 1\n")
    assert "run: is missing" in said
    assert "the run's name" in said


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_not_a_mapping(text: str) -> None:
    assert "it needs at least run:, recipe:" in fault(text)


def test_broken_yaml_names_the_line() -> None:
    assert "spec.yaml:3: not YAML" in fault(
        "run: a\nrecipe: a:B\nsteps: [1\n"
    ) or "spec.yaml:4" in fault("run: a\nrecipe: a:B\nsteps: [1\n")
    assert "indent with spaces, not tabs" in fault("run: a\n\trecipe: b\n")


def test_a_union_is_explained_by_its_options() -> None:
    said = fault(
        "sweep: s\nrun: {run: a, recipe: 'x:Y', steps: 3}\nspace:\n  h: {choise: [1, 2]}\nmetric: acc\n",
        SweepSpec,
    )
    assert "spec.yaml:4: space.h" in said
    assert "choice" in said
    assert said.count("\n") <= 2, said


def test_a_missing_file_names_a_neighbour(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text(GOOD)
    with pytest.raises(SpecError, match=r"digits\.yaml"):
        load(tmp_path / "digit.yaml", RunSpec)
    with pytest.raises(SpecError, match="this is a folder"):
        load(tmp_path, RunSpec)


def test_a_service_keeps_its_shares_and_bounds() -> None:
    spec = parse(
        "service: digits\nmodel: digits@champion\nreplicas: 0..20\nslo: {p99: 50ms}\n"
        "rollout: {strategy: canary, steps: [1%, 5%]}\n",
        ServiceSpec,
    )
    assert spec.slo.p99 == pytest.approx(0.05)
    assert spec.rollout.steps == pytest.approx((0.01, 0.05))
    assert "upper end" in fault("service: d\nmodel: d\nreplicas: 2..\n", ServiceSpec)
    for nothing in ("deadline: 0", "max_body: 0", "slo: {p99: 0}"):  # every request would fail
        assert "greater than 0" in fault(f"service: d\nmodel: d\n{nothing}\n", ServiceSpec)
    twice = "idempotent: false\nrollout: {strategy: shadow}\n"
    assert "asks each request of both" in fault(f"service: d\nmodel: d\n{twice}", ServiceSpec)


def test_specs_are_frozen() -> None:
    spec = parse(GOOD, RunSpec)
    with pytest.raises(Exception, match="frozen"):
        spec.steps = 5  # type: ignore[misc]
