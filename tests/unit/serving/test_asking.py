"""One question to a real gateway: answered with a key, refused without, and every way out is named."""

from __future__ import annotations

import socket

import pytest
from gateway_kit import Served, gateway_of

from sundog.errors import ControlUnavailable, NotFound
from sundog.security.keys import new_key
from sundog.serving.asking import KeyRefused, ask


class Same:
    def predict(self, inputs):
        return inputs


SIGNATURE = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
}


def test_a_gateway_with_keys_asks_for_one():
    with gateway_of({"same": Served(Same(), SIGNATURE)}) as running:
        assert ask(running.url, "/v2/models/same")["name"] == "same"
        key, record = new_key("me", 0.0)
        running.call(running.keys.update, [record.document()])
        assert ask(running.url, "/v2/models/same", key)["name"] == "same"
        for wrong in (None, "sd_wrong"):
            with pytest.raises(KeyRefused, match="key") as refused:
                ask(running.url, "/v2/models/same", wrong)
            assert "SUNDOG_API_KEY" in refused.value.fix
        with pytest.raises(NotFound, match="other"):
            ask(running.url, "/v2/models/other", key)


def test_where_nobody_listens_it_says_how_to_get_there():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ControlUnavailable, match="no gateway at") as missing:
            ask(address, "/sundog/services")
    assert "SUNDOG_GATEWAY" in missing.value.fix
