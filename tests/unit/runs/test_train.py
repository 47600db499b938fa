from __future__ import annotations

import pyarrow as pa
import pytest
from toy import toy_spec

from sundog.errors import NotFound, RecipeError, SpecError
from sundog.runs.train import driver_recipe, pin_data
from sundog.security.secrets import secret_environment
from sundog.storage.datasets import write_dataset
from sundog.storage.root import open_root


def test_a_run_that_resumes_reads_the_version_that_it_began_with(tmp_path):
    root, spec = open_root(str(tmp_path)), toy_spec(data="points@latest")
    with pytest.raises(NotFound, match="data: points@latest"):
        pin_data(root, spec)
    write_dataset(root, "points", {"train": pa.table({"x": [1]})})
    first = pin_data(root, spec)
    write_dataset(root, "points", {"train": pa.table({"x": [2]})})
    assert first == "points@1"
    assert pin_data(root, spec, first) == "points@1"
    assert pin_data(root, spec) == "points@2"
    assert pin_data(root, toy_spec(data="points@2"), first) == "points@2"
    assert pin_data(root, spec, "others@1") == "points@2"


def test_secrets_are_read_where_the_driver_runs_and_a_missing_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKEN_HERE", "hush")
    (tmp_path / "key").write_text("quiet\n")
    references = {"TOKEN": "env:TOKEN_HERE", "KEY": f"file:{tmp_path / 'key'}"}
    found = secret_environment(toy_spec(env={"MODE": "fast"}, secrets=references))
    assert found == {"MODE": "fast", "TOKEN": "hush", "KEY": "quiet"}
    with pytest.raises(SpecError, match=r"secrets\.TOKEN: env:NOBODY is not there") as raised:
        secret_environment(toy_spec(secrets={"TOKEN": "env:NOBODY"}))
    assert raised.value.fix


def test_a_driver_without_the_requirements_says_so_before_it_trains(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import a_package_nobody_has\n")
    monkeypatch.chdir(tmp_path)
    root = open_root(str(tmp_path / "root"))
    wanted = {"recipe": "needs_more:Mine", "requirements": ("a-package",)}
    assert driver_recipe(root, toy_spec(**wanted), None) is None  # only the workers need it
    with pytest.raises(RecipeError, match="a_package_nobody_has") as raised:
        driver_recipe(root, toy_spec(**wanted, register={"as": "mine"}), None)
    assert '{"pip": ["a-package"]}' in raised.value.fix
