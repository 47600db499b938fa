"""Request traces: both formats, their faults, and variants that keep what they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sundog.errors import NotFound, SpecError
from sundog.sim.traces import from_rates, jittered, load_trace, scaled

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:05.9799600,0,100
"""


def test_azure_rows_become_arrivals_in_order_with_service_times(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    trace = load_trace(path)
    assert trace.name == "azure"
    assert trace.arrival_s == pytest.approx([0.0, 0.052, 2.0], abs=1e-5)
    assert trace.service_s == pytest.approx([0.1 + 0.2404, 0.08 + 0.159, 1.0], abs=1e-5)
    assert trace.duration_s == 3.0


def test_integers_become_so_many_requests_in_their_second(tmp_path: Path) -> None:
    path = tmp_path / "rates.txt"
    path.write_text("3\n0\n2\n")
    trace = load_trace(path)
    assert np.bincount(trace.arrival_s.astype(int)).tolist() == [3, 0, 2]
    assert trace.duration_s == 3.0
    assert (np.diff(trace.arrival_s) >= 0).all()
    again = load_trace(path)
    assert (again.service_s == trace.service_s).all()


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "empty"), ("3\nmany\n", ":2:"), ("3\n-1\n", ":2:"), (AZURE + "x,1,2\n", ":5:")],
)
def test_faults_name_the_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(text)
    with pytest.raises(SpecError, match=says):
        load_trace(path)


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        load_trace(tmp_path / "none.csv")
    assert "--trace" in caught.value.fix


def test_variants_keep_the_hour() -> None:
    trace = from_rates("steady", np.full(600, 20))
    jitter, times_four = jittered(trace), scaled(trace)
    assert len(jitter) == len(trace)
    assert len(times_four) == 4 * len(trace)
    for variant in (jitter, times_four):
        assert variant.duration_s == trace.duration_s
        assert variant.arrival_s.min() >= 0.0
        assert variant.arrival_s.max() < trace.duration_s
        assert (np.diff(variant.arrival_s) >= 0).all()
        assert variant.mean_service_s == pytest.approx(trace.mean_service_s, rel=0.05)
    assert (jittered(trace).arrival_s == jitter.arrival_s).all()
