"""Every `sundog` command and option in docs/clusters.md exists, and every permission is in the Terraform."""

from __future__ import annotations

import re
from pathlib import Path

import typer.main

from sundog.cli import app

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "clusters.md").read_text()


def commands() -> dict[str, set[str]]:
    """Each command's path and its options."""
    found: dict[str, set[str]] = {}

    def walk(command: object, path: str) -> None:
        children = getattr(command, "commands", None)
        if children is None:
            found[path] = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}  # type: ignore[attr-defined]
            return
        for name, child in children.items():
            walk(child, f"{path} {name}".strip())

    walk(typer.main.get_command(app), "")
    return found


def test_every_command_of_the_page_exists_with_its_options() -> None:
    known, shown = commands(), []
    for line in re.findall(r"(?<!-n )sundog ([a-z][^`\n#→]*)", TEXT):
        words = line.split()
        path = next(
            (p for n in (3, 2, 1) if (p := " ".join(words[:n])) in known),
            None,
        )
        if path is None:
            if words[0] in {k.split()[0] for k in known} and "|" in line:
                group = words[0]
                names = words[1].split("|")
                missing = [n for n in names if f"{group} {n}" not in known]
                assert not missing, line
                continue
            raise AssertionError(f"no such command: sundog {line}")
        shown.append(path)
        options = {w for w in words if re.fullmatch(r"--?[a-z][a-z-]*", w)}
        assert options <= known[path] | {"--"}, line
    wanted = {f"cluster {n}" for n in (
        "plan", "compile", "up", "down", "status", "drain", "logs", "join", "prices", "probe"
    )}  # fmt: skip
    assert wanted <= set(shown), "a command that the page does not show"


def test_every_permission_of_the_terraform_is_explained() -> None:
    roles = (ROOT / "cluster-configs" / "terraform" / "aws" / "roles.tf").read_text()
    actions = set(
        re.findall(r'"((?:ec2|iam|ssm|servicequotas|pricing|ec2-instance-connect):\w+)"', roles)
    )
    conditions = {"iam:AWSServiceName", "ec2:CreateAction"}
    assert {a for a in actions - conditions if a.split(":")[1] not in TEXT} == set()
