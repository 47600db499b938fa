"""Packed bodies: both encodings both ways, and no bombs."""

import gzip
import zlib

import pytest

from sundog.serving.compression import MIN_SIZE, choose, pack, unpack
from sundog.serving.contract import BadRequest

BODY = b'{"inputs": []}' * 500


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"GZIP "])
def test_what_is_packed_comes_back(encoding):
    packed = pack(BODY, encoding.strip().lower())
    assert len(packed) < len(BODY)
    assert unpack(packed, encoding, len(BODY)) == BODY


def test_deflate_without_its_header_is_understood():
    machine = zlib.compressobj(1, zlib.DEFLATED, -15)
    assert unpack(machine.compress(BODY) + machine.flush(), b"deflate", len(BODY)) == BODY


def test_a_bomb_is_refused_without_unpacking_it():
    with pytest.raises(BadRequest) as caught:
        unpack(gzip.compress(b"\0" * 50_000_000), b"gzip", 1000)
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (b"plain", b"gzip", 400), (b"plain", b"deflate", 400), (b"x", b"br", 415),
        (gzip.compress(BODY)[:-10], b"gzip", 400), (b"", b"gzip", 400),
    ],
)  # fmt: skip
def test_what_is_not_packed_is_refused(body, encoding, status):
    with pytest.raises(BadRequest) as caught:
        unpack(body, encoding, 10**6)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("accepted", "size", "encoding"),
    [
        (b"gzip, deflate", MIN_SIZE, b"gzip"), (b"deflate", MIN_SIZE, b"deflate"),
        (b"br", MIN_SIZE, None), (b"", MIN_SIZE, None), (b"gzip", MIN_SIZE - 1, None),
        (b"gzip;q=0, deflate;q=0.5", MIN_SIZE, b"deflate"), (b"identity", MIN_SIZE, None),
    ],
)  # fmt: skip
def test_answers_are_packed_for_those_who_ask(accepted, size, encoding):
    assert choose(accepted, size) == encoding
