"""Tensors of the Open Inference Protocol: JSON values to raw bytes and back, for every datatype.

Knows datatypes and shapes only; what a model wants is contract.py's business. Raw bytes are
little-endian and row-major, as the protocol's binary extension defines them; BYTES elements carry
a 4-byte length each.
"""

from __future__ import annotations

from array import array
from itertools import chain
from math import isfinite
from typing import Any

import numpy as np
import orjson

# datatype -> numpy's name of the raw layout; BF16 has none and travels as its upper half of FP32
_LAYOUT = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
    "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BF16": "<u2",
}  # fmt: skip
# `array` refuses a float where an integer belongs and a number out of range; numpy would wrap both.
_STRICT = {
    "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q",
    "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "FP32": "f", "FP64": "d",
}  # fmt: skip

_FEW = 256

DATATYPES = (*_LAYOUT, "BYTES")
SIZE = {name: np.dtype(layout).itemsize for name, layout in _LAYOUT.items()}


class BadTensor(ValueError):
    """The values are not of the datatype, or not as many as the shape says."""


def count(shape: list[int] | tuple[int, ...]) -> int:
    total = 1
    for dim in shape:
        total *= dim
    return total


def from_json(data: Any, datatype: str, elements: int, bools: bool = True) -> bytes:
    """Raw bytes of a (possibly nested) JSON array. Raises BadTensor; never rounds an integer.

    `bools`: `true` may be among numbers, and is looked for."""
    if not isinstance(data, list):
        raise BadTensor("data is not an array")
    while data and isinstance(data[0], list):
        if set(map(type, data)) != {list} or len(set(map(len, data))) > 1:
            raise BadTensor("data is nested unevenly")
        data = list(chain.from_iterable(data))
    if len(data) != elements:
        raise BadTensor(f"data has {len(data)} values, the shape says {elements}")
    try:
        return _pack(data, datatype, bools)
    except (TypeError, ValueError, OverflowError):
        raise BadTensor(
            f"data holds a value that is not {datatype}: {_odd(data, datatype)}"
        ) from None


def _pack(data: list[Any], datatype: str, bools: bool) -> bytes:
    if bools and datatype != "BOOL" and bool in set(map(type, data)):
        raise TypeError  # Python counts them as 0 and 1
    code = _STRICT.get(datatype)
    if code is not None:
        values = array(code, data)
        if code in "fd":
            if len(values) > _FEW:
                _finite(np.frombuffer(values, _LAYOUT[datatype]))
            elif not isfinite(sum(values)) and not all(map(isfinite, values)):
                raise OverflowError  # so few are summed before numpy has begun
        return values.tobytes()
    if datatype == "BOOL":
        if any(type(x) is not bool for x in data):
            raise TypeError
        return bytes(data)
    if datatype == "FP16":
        with np.errstate(over="ignore"):  # refused below
            return _finite(np.frombuffer(array("d", data), "<f8").astype("<f2")).tobytes()
    if datatype == "BF16":
        bits = to_bf16(_finite(np.frombuffer(array("f", data), "<f4")))
        _finite(from_bf16(bits))
        return bits.tobytes()
    if any(type(x) is not str for x in data):
        raise TypeError
    return join_bytes([x.encode() for x in data])


def _finite(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """JSON has no infinities: what is one now was too large for its datatype."""
    if not np.isfinite(values).all():
        raise OverflowError
    return values


def _odd(data: list[Any], datatype: str) -> str:
    for value in data:
        try:
            _pack([value], datatype, True)
        except (TypeError, ValueError, OverflowError):
            return repr(value)[:60]
    return "?"


def raw_of(datatype: str, shape: tuple[int, ...], size: Any, tail: memoryview) -> memoryview:
    """The first `size` bytes, where they are a tensor of that shape. Raises BadTensor."""
    if type(size) is not int or not 0 <= size <= len(tail):
        raise BadTensor(f"binary_data_size {size!r} is not what the body holds ({len(tail)} left)")
    raw = tail[:size]
    if datatype == "BYTES":
        if len(split_bytes(raw)) != count(shape):
            raise BadTensor(f"the binary data has not the {count(shape)} elements of the shape")
    elif size != SIZE[datatype] * count(shape):
        raise BadTensor(
            f"{size} bytes of binary data, the shape needs {SIZE[datatype] * count(shape)}"
        )
    return raw


def nesting(value: Any) -> list[int]:
    """The shape that a JSON value says, by the first of each list."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return shape


def to_json(raw: bytes | memoryview, datatype: str) -> bytes:
    """A flat JSON array of raw bytes. NaN and infinities become null: JSON has no such numbers.

    Raises BadTensor for BYTES that are not UTF-8, which only binary data can carry.
    """
    if datatype == "BYTES":
        try:
            return orjson.dumps([item.decode() for item in split_bytes(raw)])
        except UnicodeDecodeError:
            raise BadTensor("the answer is not UTF-8 text; ask for it as binary data") from None
    values = np.frombuffer(raw, _LAYOUT[datatype])
    if datatype == "BF16":
        values = from_bf16(values)
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)


def to_numpy(raw: bytes | memoryview, datatype: str, shape: list[int]) -> np.ndarray[Any, Any]:
    """What a model is called with: BF16 widened to float32, BYTES as an object array of bytes."""
    if datatype == "BYTES":
        items = split_bytes(raw)
        out = np.empty(len(items), dtype=object)
        out[:] = items
        return out.reshape(shape)
    values = np.frombuffer(raw, _LAYOUT[datatype])
    return (from_bf16(values) if datatype == "BF16" else values).reshape(shape)


def from_numpy(values: np.ndarray[Any, Any], datatype: str) -> bytes | memoryview:
    """Raw bytes of what a model answered, cast to the datatype that its signature promises."""
    if datatype == "BYTES":
        return join_bytes(
            [x.encode() if isinstance(x, str) else bytes(x) for x in values.reshape(-1).tolist()]
        )
    if datatype == "BF16":
        return to_bf16(np.asarray(values, "<f4").reshape(-1)).tobytes()
    return np.ascontiguousarray(values, _LAYOUT[datatype]).reshape(-1).view("u1").data


def join_bytes(items: list[bytes]) -> bytes:
    return b"".join(part for item in items for part in (len(item).to_bytes(4, "little"), item))


def split_bytes(raw: bytes | memoryview) -> list[bytes]:
    """Elements of a BYTES tensor. Raises BadTensor when a length runs past the end."""
    view, out, at = memoryview(raw), [], 0
    while at < len(view):
        end = at + 4 + int.from_bytes(view[at : at + 4], "little")
        if at + 4 > len(view) or end > len(view):
            raise BadTensor("an element of the BYTES tensor runs past its end")
        out.append(bytes(view[at + 4 : end]))
        at = end
    return out


def to_bf16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 -> the upper 16 bits, rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2")


def from_bf16(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (bits.astype("<u4") << 16).view("<f4")
