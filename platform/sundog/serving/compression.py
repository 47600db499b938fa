"""gzip and deflate of bodies, bounded: a small body that would unpack to gigabytes is refused."""

from __future__ import annotations

import zlib

from sundog.serving.contract import BadRequest

MIN_SIZE = 2048
"""Smaller answers are sent as they are: packing costs more than it saves."""
_LEVEL = 1
_WBITS = {b"gzip": 31, b"deflate": 15}


def unpack(body: bytes, encoding: bytes, limit: int) -> bytes:
    """The body in clear. Raises BadRequest: 415 for another encoding, 413 over `limit` bytes."""
    encoding = encoding.strip().lower()
    if encoding in (b"", b"identity"):
        return body
    bits = _WBITS.get(encoding)
    if bits is None:
        raise BadRequest("content-encoding: only gzip and deflate are understood", 415)
    out = b""
    try:
        # Some clients send deflate without its zlib header.
        for wbits in (bits, -15) if encoding == b"deflate" else (bits,):
            machine = zlib.decompressobj(wbits)
            try:
                out = machine.decompress(body, limit + 1)
                break
            except zlib.error:
                if wbits == -15 or encoding == b"gzip":
                    raise
    except zlib.error as error:
        raise BadRequest(f"the body is not {encoding.decode()}: {error}") from None
    if len(out) > limit:
        raise BadRequest(f"the unpacked body is over {limit} bytes, the service's max_body", 413)
    if not machine.eof:
        raise BadRequest(f"the {encoding.decode()} body ends too early")
    return out


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
