"""Before `ray up`: one wheel of this project, and a token that nobody else can read."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from sundog.capacity.ready import make_ready
from sundog.capacity.wheel import build_wheel
from sundog.errors import ClusterError

SPEC = "cluster: c\ncloud: {aws: {region: us-east-1}}\npools: {a: {need: {gpu: A10G x1}}}\n"


def test_a_token_is_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = tmp_path / "c.yaml"
    spec.write_text(SPEC + "install: {url: https://example.org/sundog.whl}\n")
    assert len(make_ready(spec, tmp_path)) == 1
    token = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    before = token.read_text()
    assert len(before) == 64
    assert make_ready(spec, tmp_path) == []
    assert token.read_text() == before


def test_a_folder_without_a_project_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"install: \{url"):
        build_wheel(tmp_path / "out", tmp_path)


@pytest.mark.slow
def test_the_wheel_carries_the_provider_and_the_prices(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "sundog-0.0.0.whl").write_text("")
    wheel = build_wheel(tmp_path / "old", root)
    assert list((tmp_path / "old").iterdir()) == [wheel]
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "sundog/capacity/provider.py", "sundog/market/data/prices.csv.gz",
        "sundog/market/data/shapes.csv",
    } <= names  # fmt: skip
