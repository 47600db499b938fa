"""AWS: lets the caller's own cloud identity into an instance over SSH, for a minute (Instance Connect).

    python -m sundog.clouds.aws_access REGION INSTANCE USER PUBLIC_KEY_FILE

No shared key: who may call SendSSHPublicKey gets in, and nobody else.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions

from sundog.clouds.aws import typed
from sundog.errors import CapacityError


def push_key(region: str, instance: str, user: str, public_key: str, *, client: Any = None) -> None:
    """Let the owner of this key in as `user` for the next 60 s. AuthRefused, Rejected, Transient."""
    client = client or boto3.client("ec2-instance-connect", region_name=region)
    try:
        client.send_ssh_public_key(
            InstanceId=instance, InstanceOSUser=user, SSHPublicKey=public_key
        )
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        raise typed(error) from error


def main(argv: list[str]) -> int:
    region, instance, user, key_file = argv
    try:
        push_key(region, instance, user, Path(key_file).read_text().strip())
    except CapacityError as error:
        print(f"sundog: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
