"""What every test gets: no test reads or writes the home folder's Ray token, or finds a foreign Ray."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# A shared machine is slow now and then, which is no fault of the code; CI draws the same examples
# every time.
settings.register_profile("sundog", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("sundog")


@pytest.fixture(autouse=True, scope="session")
def isolated_environment(tmp_path_factory: pytest.TempPathFactory):
    """A home of its own, one token for every Ray of this session, and no address to inherit."""
    home = tmp_path_factory.mktemp("home")
    token = home / "token"
    token.write_text("0" * 64)
    token.chmod(0o600)
    before = dict(os.environ)
    os.environ.update(
        HOME=str(home),
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(token),
        RAY_USAGE_STATS_ENABLED="0",
        # Ray on loopback only, as `sundog up` starts it.
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
    )
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS",
                 "SUNDOG_ROOT", "SUNDOG_GATEWAY", "SUNDOG_STORE", "SUNDOG_RUN_ID"):  # fmt: skip
        os.environ.pop(name, None)
    yield home
    os.environ.clear()
    os.environ.update(before)
