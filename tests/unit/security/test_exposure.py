"""Which addresses others reach, and that the gateway says so while nobody needs a key."""

import logging

import pytest

from sundog.security.exposure import beyond_this_machine
from sundog.serving.gateway import warn_when_open


@pytest.mark.parametrize(
    ("address", "reached"),
    [("http://127.0.0.1:8420", False), ("127.0.0.1:8421", False), ("http://[::1]:80", False),
     ("http://localhost:80", False), ("http://0.0.0.0:8420", True), ("http://[::]:80", True),
     ("http://10.0.0.3:80", True), ("http://gateway.example:80", True)],
)  # fmt: skip
def test_who_reaches_an_address(address, reached):
    assert beyond_this_machine(address) is reached


@pytest.mark.parametrize(
    ("address", "has_keys", "warned"),
    [("http://0.0.0.0:8420", False, True), ("http://0.0.0.0:8420", True, False),
     ("http://127.0.0.1:8420", False, False)],
)  # fmt: skip
def test_the_gateway_warns_where_it_is_open_to_others(caplog, address, has_keys, warned):
    with caplog.at_level(logging.WARNING, "sundog.gateway"):
        warn_when_open([address], has_keys)
    assert ("ANYBODY" in caplog.text and "sundog keys create" in caplog.text) is warned
