"""The Dockerfile of the KubeRay image: it parses, what it copies is there, and it is this Ray's."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]
KNOWN = {"FROM", "USER", "COPY", "RUN", "WORKDIR", "ENV", "ARG", "LABEL", "ENTRYPOINT", "CMD"}


def instructions() -> list[tuple[str, str]]:
    text = (ROOT / "cluster-configs" / "Dockerfile").read_text()
    lines = [x for x in text.splitlines() if x.strip() and not x.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(x.split(None, 1)[0], x.split(None, 1)[1]) for x in joined.splitlines()]


def test_it_parses_and_starts_from_the_pinned_ray() -> None:
    found = instructions()
    assert {name for name, _ in found} <= KNOWN
    assert found[0] == ("FROM", f"rayproject/ray:{importlib.metadata.version('ray')}-py311-gpu")
    for name, rest in found:
        if name == "RUN":
            assert shlex.split(rest), rest


def test_all_that_it_copies_is_in_the_repository() -> None:
    copied = [p for name, rest in instructions() if name == "COPY" for p in rest.split()[:-1]]
    assert copied
    assert [p for p in copied if not (ROOT / p).exists()] == []
    # The build reads the readme that pyproject names.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["readme"] in copied


def test_it_ends_as_an_ordinary_user_as_the_manifests_demand() -> None:
    users = [rest for name, rest in instructions() if name == "USER"]
    assert users[-1] not in ("root", "0")
    assert users[-1] == "1000"
