"""Where gateways shall be, as settings say it."""

from __future__ import annotations

import pytest

from sundog.errors import ServiceError
from sundog.serving.places import default_gateways, default_nodes, fitting, here, label_of

NODE = "http://node:8420"


def test_a_node_puts_its_own_address_where_node_stands():
    assert here("http://node:8420", "10.0.0.7") == "http://10.0.0.7:8420"
    assert here("https://node:1", "fd00::1") == "https://[fd00::1]:1"
    assert here("node:9000", "10.0.0.7") == "10.0.0.7:9000"
    for address in ("http://0.0.0.0:8420", "http://nodes:1", "http://my-node:1", ""):
        assert here(address, "10.0.0.7") == address


def test_which_nodes_have_gateways(monkeypatch):
    monkeypatch.delenv("SUNDOG_GATEWAY_NODES", raising=False)
    assert default_nodes("http://127.0.0.1:8420") == "head"
    for text in ("all", "sundog.pool=web"):
        monkeypatch.setenv("SUNDOG_GATEWAY_NODES", text)
        assert default_nodes(NODE) == text
        with pytest.raises(ServiceError, match=r"nobody reaches http://127.0.0.1:8420") as caught:
            default_nodes("http://127.0.0.1:8420")
        assert "http://node:8420" in caught.value.fix
    for text in ("some", "=web", "sundog.pool="):
        monkeypatch.setenv("SUNDOG_GATEWAY_NODES", text)
        with pytest.raises(ServiceError, match="does not say which nodes"):
            default_nodes(NODE)


def test_as_many_as_fit_and_at_least_one():
    web, other = {"role": "web", "zone": "a"}, {"role": "gpu"}
    assert fitting("all", [web, other, {}]) == 3
    assert fitting("role=web", [web, other, web]) == 2
    assert fitting("role=none", [web, other]) == 1
    assert fitting("head", [web, other]) == 1
    assert (label_of("role=web"), label_of("all"), label_of("head")) == ({"role": "web"}, {}, {})


def test_how_many_a_node(monkeypatch):
    monkeypatch.setenv("SUNDOG_GATEWAYS", "33")
    with pytest.raises(ServiceError, match="33"):
        default_gateways()
