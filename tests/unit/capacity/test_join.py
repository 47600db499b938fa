"""Joining by cloud identity: the key is pushed before every connection, the token is the person's alone."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import boto3
import pytest
import yaml
from scripted_cloud import ScriptedCloud

from sundog.capacity.compile import compile_cluster
from sundog.capacity.compiled import config_of, read_compiled
from sundog.capacity.join import Joined, join
from sundog.clouds.aws_access import main, push_key
from sundog.clouds.base import AuthRefused, Order
from sundog.errors import ClusterError

SPEC = Path(__file__).parents[3] / "cluster-configs" / "specs" / "aws-train.yaml"


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(compile_cluster(SPEC).text)
    return path


def with_head() -> ScriptedCloud:
    cloud = ScriptedCloud()
    tags = {"ray-cluster-name": "train", "sundog:pool": "head"}
    cloud.launch(Order("on-demand", "z1", "m6i.xlarge", 1, "t", tags))
    return cloud


class Shell:
    """ssh-keygen as it is; ssh answers what the test says."""

    def __init__(self, code: int = 0, out: str = "secret\n", err: str = "") -> None:
        self.answer, self.asked = (code, out, err), []

    def __call__(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        self.asked.append(command)
        if command[0] == "ssh-keygen":
            return subprocess.run(command, check=False, capture_output=True, text=True)
        return subprocess.CompletedProcess(command, *self.answer)


def joined(compiled: Path, home: Path, shell: Shell) -> tuple[Joined, list[tuple[str, ...]]]:
    pushed: list[tuple[str, ...]] = []
    found = join(
        read_compiled(compiled),
        cloud=with_head(),
        push=lambda *a: pushed.append(a),
        run=shell,
        home=home,
    )
    return found, pushed


def test_a_laptop_gets_endpoint_token_and_ssh(compiled: Path, tmp_path: Path) -> None:
    shell = Shell()
    found, pushed = joined(compiled, tmp_path, shell)
    folder = tmp_path / ".sundog" / "clusters" / "train"
    token = folder / "token"
    assert token.read_text() == "secret"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "key").stat().st_mode) == 0o600
    assert found.env["RAY_AUTH_TOKEN_PATH"] == str(token)
    assert found.env["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:8265"
    assert "-L 8265:127.0.0.1:8265" in found.tunnel
    [(region, instance, user, key)] = pushed
    assert (region, instance, user) == ("us-east-1", found.head, "ubuntu")
    assert key == (folder / "key.pub").read_text().strip()
    text = (folder / "ssh_config").read_text()
    assert f"sundog.clouds.aws_access us-east-1 {found.head} ubuntu {folder}/key.pub" in text
    assert "aws ssm start-session" in text  # as the spec says, through_ssm
    assert "secret" not in text
    # A second time the same key is used.
    joined(compiled, tmp_path, shell)
    assert sum(c[0] == "ssh-keygen" for c in shell.asked) == 1


def test_ssh_itself_takes_the_configuration_it_is_given(compiled: Path, tmp_path: Path) -> None:
    found, _ = joined(compiled, tmp_path, Shell())
    config = tmp_path / ".sundog" / "clusters" / "train" / "ssh_config"
    # -G resolves the configuration and connects nowhere; `Match exec` would run, so it is replaced.
    text = config.read_text()
    assert text.startswith('Match originalhost sundog-train exec "')
    config.write_text('Match originalhost sundog-train exec "true"\n' + text.split("\n", 1)[1])
    said = subprocess.run(
        ["ssh", "-F", str(config), "-G", "sundog-train"], check=True, capture_output=True, text=True
    ).stdout
    assert f"hostname {found.head}" in said
    assert "user ubuntu" in said
    assert "identitiesonly yes" in said


def test_what_stands_in_the_way_is_said(compiled: Path, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="Permission denied") as caught:
        joined(compiled, tmp_path, Shell(255, "", "Permission denied (publickey)"))
    assert "ec2-instance-connect" in caught.value.fix
    assert not (tmp_path / ".sundog" / "clusters" / "train" / "token").exists()
    with pytest.raises(ClusterError, match="0 heads"):
        join(
            read_compiled(compiled),
            cloud=ScriptedCloud(),
            push=lambda *a: None,
            run=Shell(),
            home=tmp_path,
        )
    plain = yaml.safe_load(compiled.read_text())
    del plain["provider"]["sundog"]
    compiled.write_text(yaml.safe_dump(plain))
    with pytest.raises(ClusterError, match="no elastic provider"):
        join(
            read_compiled(compiled),
            cloud=with_head(),
            push=lambda *a: None,
            run=Shell(),
            home=tmp_path,
        )


class Client:
    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.sent = error, {}

    def send_ssh_public_key(self, **asked: str) -> None:
        if self.error:
            raise self.error
        self.sent = asked


def test_a_key_is_pushed_and_a_refusal_is_typed() -> None:
    import botocore.exceptions

    client = Client()
    push_key("r1", "i-1", "ubuntu", "ssh-ed25519 A", client=client)
    assert client.sent == {
        "InstanceId": "i-1", "InstanceOSUser": "ubuntu", "SSHPublicKey": "ssh-ed25519 A"
    }  # fmt: skip
    denied = botocore.exceptions.ClientError(
        {"Error": {"Code": "UnauthorizedOperation", "Message": "no"}}, "SendSSHPublicKey"
    )
    with pytest.raises(AuthRefused):
        push_key("r1", "i-1", "ubuntu", "k", client=Client(denied))


def test_the_command_that_ssh_runs_says_why_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers credentials of before
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    key = tmp_path / "k.pub"
    key.write_text("ssh-ed25519 " + "A" * 80)
    assert main(["us-east-1", "i-0123456789", "ubuntu", str(key)]) == 1
    assert "credentials" in capsys.readouterr().err.lower()


def test_a_spec_alone_or_its_compiled_file_alone_is_enough(compiled: Path, tmp_path: Path) -> None:
    alone = tmp_path / "colleague" / "aws.yaml"
    alone.parent.mkdir()
    alone.write_text(SPEC.read_text())
    from_spec, from_file = config_of(alone), config_of(compiled)
    assert from_spec == from_file
    assert not (tmp_path / "colleague" / "aws.ray.yaml").exists(), "joining writes no cluster file"
