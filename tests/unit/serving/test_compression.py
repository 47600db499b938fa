"""Packed bodies: both encodings both ways, and no bombs."""

import asyncio
import gzip
import threading
import zlib

import pytest

from sundog.serving import compression
from sundog.serving.compression import MIN_SIZE, choose, pack, unpack, unpacked
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


def test_every_member_of_a_gzip_body_counts(monkeypatch):
    half = len(BODY) // 2
    packed = gzip.compress(BODY[:half]) + gzip.compress(BODY[half:])
    assert unpack(packed, b"gzip", len(BODY)) == BODY
    assert unpack(packed + b"\0" * 512, b"gzip", len(BODY)) == BODY
    monkeypatch.setattr(compression, "_PIECE", 7)
    assert unpack(packed, b"gzip", len(BODY)) == BODY
    for wrong, status in ((packed + b"x", 400), (packed[:-9], 400), (packed * 2, 413)):
        with pytest.raises(BadRequest) as caught:
            unpack(wrong, b"gzip", len(BODY))
        assert caught.value.status == status


def test_members_without_end_are_refused():
    with pytest.raises(BadRequest):
        unpack(gzip.compress(b"") * 5000, b"gzip", 1000)


def test_large_bodies_are_unpacked_beside_the_loop(monkeypatch):
    seen = []
    monkeypatch.setattr(
        compression, "unpack", lambda body, *_: seen.append(threading.current_thread()) or body
    )

    async def main():
        await unpacked(b"small", b"gzip", 10)
        await unpacked(b"l" * 100_000, b"gzip", 10)

    asyncio.run(main())
    assert [t is threading.main_thread() for t in seen] == [True, False]


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
