"""What this machine must have before `ray up`: the wheel and the token that compiled files mount."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from sundog.capacity.check import read_spec
from sundog.capacity.commands import LOCAL_WHEEL_DIR, TOKEN
from sundog.capacity.wheel import build_wheel


def make_ready(spec_path: str | Path, source: str | Path = ".") -> list[str]:
    """Make what is missing, and say what was made. The wheel is always fresh."""
    spec = read_spec(spec_path).spec
    done = []
    if spec.install.url is None and spec.install.wheel == "auto":
        wheel = build_wheel(Path(source) / LOCAL_WHEEL_DIR, source)
        done.append(f"built {wheel}")
    token = Path(TOKEN).expanduser()
    if not token.exists():
        token.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
        done.append(f"made a token for Ray in {token}")
    return done
