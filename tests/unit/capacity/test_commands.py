"""What nodes run before Ray: a Python of Sundog's own whatever the image has, and the wheel in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sundog.capacity import commands
from sundog.capacity.wheel import build_wheel
from sundog.errors import SpecError
from sundog.spec.cluster import ClusterSpec
from sundog.spec.load import parse

ROOT = Path(__file__).parents[3]
SPEC = "cluster: c\ncloud: {aws: {region: us-east-1}}\npools: {a: {need: {gpu: A10G x1}}}\n"


def spec(more: str = "") -> ClusterSpec:
    return parse(SPEC + more, ClusterSpec)


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


class Node:
    """A home and a PATH of stand-ins that write down how they were called."""

    def __init__(self, folder: Path) -> None:
        self.home, self.bin, self.log = folder / "home", folder / "bin", folder / "log"
        for made in (self.home / ".ray", self.home / ".sundog" / "wheel", self.bin):
            made.mkdir(parents=True)
        (self.home / ".ray" / "auth_token").write_text("x")
        self.log.touch()
        # What a uv does that matters here: a venv has a python3.
        self.uv = folder / "uv"
        script(
            self.uv,
            f'echo "uv $@" >> {self.log}\n'
            'if [ "$1" = venv ]; then for v; do :; done; mkdir -p "$v/bin"; '
            'printf "#!/bin/sh\\n" > "$v/bin/python3"; chmod +x "$v/bin/python3"; fi',
        )

    def setup(self, of: ClusterSpec) -> None:
        env = {"HOME": str(self.home), "PATH": f"{self.bin}:/usr/bin:/bin"}
        for command in commands.setup(of):
            done = subprocess.run(
                ["bash", "-c", command], env=env, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, command + done.stderr

    def said(self, what: str) -> list[str]:
        return [x for x in self.log.read_text().splitlines() if x.startswith(what)]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    made = Node(tmp_path)
    copy = f'mkdir -p "$HOME/.sundog/uv/bin" && cp {made.uv} "$HOME/.sundog/uv/bin/uv"'
    script(made.bin / "python3", f'echo "python3 $@" >> {made.log}\n{copy}')
    script(made.bin / "curl", f"echo \"curl $@\" >> {made.log}\necho '{copy}'")
    return made


def test_a_node_gets_its_own_python_once_and_the_newest_wheel_each_time(node: Node) -> None:
    wheels = node.home / ".sundog" / "wheel"
    (wheels / "sundog-0.2.0-py3-none-any.whl").touch()
    (wheels / "sundog-0.1.0-py3-none-any.whl").touch()
    os.utime(wheels / "sundog-0.1.0-py3-none-any.whl", (1, 1))
    node.setup(spec())
    node.setup(spec())
    venv = f"{node.home}/.sundog/venv"
    assert node.said("uv venv") == [f"uv venv -q --seed --python 3.11 {venv}"]
    assert len(node.said("python3 -m pip")) == 1
    installs = node.said("uv pip install")
    assert len(installs) == 2
    assert all(x.endswith(f"--reinstall-package sundog {wheels}/sundog-0.2.0-py3-none-any.whl")
               for x in installs)  # fmt: skip
    assert not node.said("curl")


def test_an_image_without_pip_gets_uv_from_its_installer(node: Node) -> None:
    script(node.bin / "python3", "exit 1")
    node.setup(spec("install: {url: 'https://example.org/sundog.whl'}\n"))
    assert node.said("curl") == [f"curl -LsSf https://astral.sh/uv/{commands.UV}/install.sh"]
    [install] = node.said("uv pip install")
    assert install.endswith("https://example.org/sundog.whl")


def test_python_and_ray_are_those_of_the_venv_whatever_path_the_spec_sets() -> None:
    own = spec("env: {PATH: '/usr/local/cuda/bin:$PATH'}\n")
    done = subprocess.run(
        ["bash", "-c", f"{commands.exports(own)} echo $PATH"],
        env={"HOME": "/home/u", "PATH": "/bin"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "/home/u/.sundog/venv/bin:/usr/local/cuda/bin:/bin"


@pytest.mark.parametrize(
    "install", ["{wheel: none}", "{python: image}", "{ray: false, python: image}"]
)
def test_an_image_that_brings_python_keeps_it(install: str) -> None:
    theirs = spec(f"install: {install}\n")
    text = " ".join([*commands.setup(theirs), commands.exports(theirs)])
    assert "uv" not in text
    assert ("pip install" in text) == ("none" not in install)


def test_rays_of_the_image_need_the_python_of_the_image() -> None:
    with pytest.raises(SpecError, match="python: image"):
        spec("install: {ray: false}\n")


def test_a_wheel_of_ones_own_lies_on_the_node_where_setup_looks_for_it() -> None:
    own = spec("install: {wheel: build/sundog-9.9-py3-none-any.whl}\n")
    mounts = commands.file_mounts(own)
    assert (
        mounts["~/.sundog/wheel/sundog-9.9-py3-none-any.whl"] == "build/sundog-9.9-py3-none-any.whl"
    )
    assert "~/.sundog/wheel" not in mounts


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_the_setup_really_brings_a_python_that_has_sundog(tmp_path: Path) -> None:
    """The committed commands in an empty home, with the wheel of this project and real registries."""
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("x")
    build_wheel(home / ".sundog" / "wheel", ROOT)
    python = Path(sys.executable).resolve().parent
    env = {k: v for k, v in os.environ.items() if k.startswith(("SSL_", "PIP_", "UV_", "http"))}
    env |= {"HOME": str(home), "PATH": f"{python}:/usr/bin:/bin"}
    # uv reads none of pip's settings: this machine's index and the pinned versions, said in its own.
    env |= {"UV_CONSTRAINT": str(ROOT / "constraints.txt"), "UV_NATIVE_TLS": "1"}
    for theirs, ours in (
        ("PIP_FIND_LINKS", "UV_FIND_LINKS"),
        ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"),
    ):
        if theirs in os.environ:
            env[ours] = os.environ[theirs]
    reached = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path / "d"),
         f"uv=={commands.UV}"], capture_output=True, check=False,
    )  # fmt: skip
    if reached.returncode:
        pytest.skip("no package registry is reached from here")
    for _ in range(2):
        for command in commands.setup(spec()):
            done = subprocess.run(
                ["bash", "-c", command], env=env, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, command + done.stdout + done.stderr
    asked = (
        "import sundog, sys, ray, torch; print(sys.prefix, sys.version_info[:2], sundog.__file__)"
    )
    said = subprocess.run(
        ["bash", "-c", f"{commands.exports(spec())} python3 -c '{asked}' && ray --version && pip -V"],
        env=env, capture_output=True, text=True, check=True, cwd=tmp_path,
    ).stdout  # fmt: skip
    venv = home / ".sundog" / "venv"
    assert f"{venv} (3, 11) {venv}/lib/python3.11/site-packages/sundog/__init__.py" in said
    assert "2.60.0" in said
    assert str(venv) in said.splitlines()[-1]
