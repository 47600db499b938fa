"""gzip and deflate of bodies, bounded: a small body that would unpack to gigabytes is refused."""

from __future__ import annotations

import asyncio
import zlib

from sundog.serving.contract import BadRequest

MIN_SIZE = 2048
"""Smaller answers are sent as they are: packing costs more than it saves."""
_LEVEL = 1
_UNPACK_INLINE = 4096
"""Packed bytes; unpacked they are a thousand times as many at most"""
_PIECE = 64 * 1024
_MAX_MEMBERS = 1024
_WBITS = {b"gzip": 31, b"deflate": 15}


def unpack(body: bytes, encoding: bytes, limit: int) -> bytes:
    """The body in clear. Raises BadRequest: 415 for another encoding, 413 over `limit` bytes."""
    encoding = encoding.strip().lower()
    if encoding in (b"", b"identity"):
        return body
    bits = _WBITS.get(encoding)
    if bits is None:
        raise BadRequest("content-encoding: only gzip and deflate are understood", 415)
    try:
        out, whole = _members(body, bits, limit)
    except zlib.error as error:
        try:  # some clients send deflate without its zlib header
            out, whole = _members(body, -15 if encoding == b"deflate" else bits, limit)
        except zlib.error:
            raise BadRequest(f"the body is not {encoding.decode()}: {error}") from None
    if len(out) > limit:
        raise BadRequest(f"the unpacked body is over {limit} bytes, the service's max_body", 413)
    if not whole:
        raise BadRequest(f"the {encoding.decode()} body ends too early")
    return out


def _members(body: bytes, bits: int, limit: int) -> tuple[bytes, bool]:
    """What is in a body, at most `limit` + 1 bytes of it, and whether it came to an end.

    A gzip body may have several members, as `cat a.gz b.gz` makes them; zlib takes one at a time, and
    copies what is left at the end of each: pieces bound that.
    """
    out: list[bytes] = []
    room, members = limit + 1, 1
    machine = zlib.decompressobj(bits)
    for at in range(0, len(body), _PIECE):
        piece = body[at : at + _PIECE]
        while piece and room:
            if machine.eof:
                piece = piece.lstrip(b"\0")  # padding, as tapes have it
                if not piece:
                    break
                members += 1
                if bits != _WBITS[b"gzip"] or members > _MAX_MEMBERS:
                    raise zlib.error("something follows its end")
                machine = zlib.decompressobj(bits)
            out.append(machine.decompress(piece, room))
            room -= len(out[-1])
            piece = machine.unused_data
    return b"".join(out), machine.eof


async def unpacked(body: bytes, encoding: bytes, limit: int) -> bytes:
    """`unpack`, in a thread where it may take long."""
    if len(body) < _UNPACK_INLINE:
        return unpack(body, encoding, limit)
    return await asyncio.to_thread(unpack, body, encoding, limit)


def choose(accepted: bytes, size: int) -> bytes | None:
    """The encoding for an answer of `size` bytes, or None to send it as it is."""
    if size < MIN_SIZE or not accepted:
        return None
    offered = {part.split(b";")[0].strip().lower(): part for part in accepted.split(b",")}
    for encoding in (b"gzip", b"deflate"):
        part = offered.get(encoding)
        if part is not None and b"q=0" not in part.replace(b" ", b"").replace(b"q=0.", b""):
            return encoding
    return None


def pack(body: bytes, encoding: bytes) -> bytes:
    machine = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WBITS[encoding])
    return machine.compress(body) + machine.flush()
