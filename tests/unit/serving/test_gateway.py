"""The gateway's address and its port."""

import socket

import pytest

from sundog.errors import ServiceError
from sundog.serving.gateway import bind
from sundog.serving.places import parse_address


def test_addresses():
    assert parse_address("http://127.0.0.1:8420") == ("127.0.0.1", 8420)
    assert parse_address("0.0.0.0:80") == ("0.0.0.0", 80)
    assert parse_address("http://[::1]:81") == ("::1", 81)
    assert parse_address("https://h:1") == ("h", 1)


@pytest.mark.parametrize(
    "address", ["http://host", "http://:80", "ftp://h:1", "http://h:99999", ""]
)
def test_what_is_no_address_is_refused_with_the_fix(address):
    with pytest.raises(ServiceError, match="SUNDOG_GATEWAY="):
        parse_address(address)


def test_a_port_in_use_is_named_with_the_fix():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError) as caught:
            bind(f"http://127.0.0.1:{port}", timeout_s=0)
    assert f"port {port}" in caught.value.message
    assert "SUNDOG_GATEWAY=http://127.0.0.1:<free port>" in caught.value.fix


def test_the_gateway_listens_where_it_is_told_only():
    listener = bind("http://127.0.0.1:0")
    assert listener.getsockname()[0] == "127.0.0.1"
    listener.close()
