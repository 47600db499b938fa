"""What every test gets: no test reads the home folder's Ray token, or finds a foreign Ray."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# A shared machine is slow now and then, which is no fault of the code; CI draws the same examples
# every time.
settings.register_profile("sundog", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("sundog")

_FOREIGN = (
    "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS",
    "SUNDOG_ROOT", "SUNDOG_GATEWAY", "SUNDOG_GATEWAYS", "SUNDOG_GATEWAY_NODES", "SUNDOG_STORE",
    "SUNDOG_RUN_ID",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """A home of its own and one token for every Ray of this session.

    Here and not in a fixture: Ray reads these once, when the first test module imports it.
    """
    home = Path(tempfile.mkdtemp(prefix="sundog-tests-"))
    config.stash[_HOME] = home
    token = home / "token"
    token.write_text("0" * 64)
    token.chmod(0o600)
    for name in _FOREIGN:
        os.environ.pop(name, None)
    os.environ.update(
        HOME=str(home),
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(token),
        RAY_USAGE_STATS_ENABLED="0",
        # Ray's own 15 starves workers on a machine that is busy with something else.
        RAY_worker_niceness="0",
        # Ray on loopback only, as `sundog up` starts it.
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[_HOME], ignore_errors=True)


_HOME = pytest.StashKey[Path]()
