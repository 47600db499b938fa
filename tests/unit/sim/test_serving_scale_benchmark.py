"""The scaling benchmark runs on files of both formats and writes what it promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import serving_scale


def rates(path: Path) -> Path:
    levels = np.random.default_rng(5).poisson(np.repeat([20, 40, 25], 200))
    path.write_text("\n".join(map(str, levels)) + "\n")
    return path


def azure(path: Path) -> Path:
    rows = [
        f"2023-11-16 18:{17 + at // 60:02}:{at % 60:02}.1234567,{1000 + at},{10 + at % 50}"
        for at in range(0, 600, 2)
    ]
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    return path


def test_both_formats_in_one_call(tmp_path: Path) -> None:
    out, svg = tmp_path / "out.json", tmp_path / "out.svg"
    traces = [rates(tmp_path / "steps.txt"), azure(tmp_path / "azure.csv")]
    arguments = [word for path in traces for word in ("--trace", str(path))]
    assert serving_scale.main([*arguments, "--quick", "--json", str(out), "--svg", str(svg)]) == 0
    report = json.loads(out.read_text())
    assert set(report["traces"]) == {"steps", "azure"}
    for entry in report["traces"].values():
        assert {"sundog", "knative_kpa", "kubernetes_hpa", "skyserve"} <= set(entry["policies"])
        ours = entry["policies"]["sundog"]
        assert ours["slo_attainment"] == 1.0
        assert 1.0 <= ours["cost_over_optimum"] < 2.5
    assert report["summary"]["sundog"]["slo_attainment_min"] == 1.0
    assert svg.read_text().startswith("<?xml")


def test_variants_unless_quick(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    trace = rates(tmp_path / "steps.txt")
    assert serving_scale.main(["--trace", str(trace), "--json", str(out)]) == 0
    assert set(json.loads(out.read_text())["variants"]) == {"steps~jittered", "steps~x4"}


def test_a_missing_trace_is_said_without_a_stack(tmp_path: Path, capsys) -> None:
    assert serving_scale.main(["--trace", str(tmp_path / "none.txt")]) == 1
    assert "no trace at" in capsys.readouterr().err
