"""Every datatype of the protocol: JSON in, raw bytes, JSON out."""

import contextlib
import math

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sundog.serving.tensors import (
    DATATYPES,
    BadTensor,
    from_json,
    from_numpy,
    join_bytes,
    split_bytes,
    to_bf16,
    to_json,
    to_numpy,
)

INTEGERS = [d for d in DATATYPES if "INT" in d]
EXAMPLES = {
    "BOOL": [True, False], "FP16": [0.5, -2.0], "FP32": [0.25, -1.5], "FP64": [1e-300, 2.0],
    "BF16": [1.0, -0.5], "BYTES": ["a", "päl", ""],
} | {d: [0, 1, 100] for d in INTEGERS}  # fmt: skip


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_goes_through_and_back(datatype):
    values = EXAMPLES[datatype]
    raw = from_json(values, datatype, len(values))
    assert orjson.loads(to_json(raw, datatype)) == values
    array = to_numpy(raw, datatype, [len(values)])
    assert bytes(from_numpy(array, datatype)) == raw


@pytest.mark.parametrize("datatype", DATATYPES)
def test_nested_and_flat_data_are_the_same(datatype):
    values = (EXAMPLES[datatype] * 3)[:4]
    assert from_json([values[:2], values[2:]], datatype, 4) == from_json(values, datatype, 4)


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("INT64", 1.5), ("INT8", 128), ("INT8", -129), ("UINT8", -1), ("UINT64", 2**64),
        ("INT32", "1"), ("FP32", "1"), ("FP32", None), ("FP64", {}), ("BOOL", 1), ("BOOL", "true"),
        ("BYTES", 1), ("BYTES", None), ("FP16", "x"), ("BF16", []), ("BYTES", True),
        ("INT64", True), ("FP32", False), ("FP16", True), ("BF16", True),
        ("FP32", 1e300), ("FP16", 1e5), ("BF16", 1e300), ("BF16", 3.4e38), ("FP64", float("inf")),
    ],
)  # fmt: skip
def test_a_value_of_another_datatype_is_refused(datatype, value):
    for times in (1, 1000):
        with pytest.raises(BadTensor):
            from_json([value] * times, datatype, times)


@pytest.mark.parametrize(
    "data", [None, 3, "abc", {}, [[1], 2], [1, 2, 3], [[1, 2], [3]], [[1, 2], []]]
)
def test_data_that_does_not_fill_the_shape_is_refused(data):
    with pytest.raises(BadTensor):
        from_json(data, "INT32", 2)


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("INT32", [[1, 2], [3], [4, 5, 6]]), ("BYTES", [["a"], "bc"]), ("BYTES", [["a", "b"], "c"]),
        ("INT32", [[[1, 2], [3]], [[4], [5, 6]]]), ("INT32", [[], [1, 2, 3, 4, 5, 6]]),
    ],
)  # fmt: skip
def test_rows_of_different_lengths_are_refused_even_if_they_fill_the_shape(datatype, data):
    with pytest.raises(BadTensor, match="unevenly"):
        from_json(data, datatype, 3 if datatype == "BYTES" else 6)


def test_large_numbers_are_finite_even_if_their_sum_is_not():
    assert len(from_json([1.7e308] * 4, "FP64", 4)) == 32


def test_no_values_are_a_tensor_too():
    assert from_json([], "FP32", 0) == b""
    assert to_json(b"", "FP32") == b"[]"
    assert to_json(b"", "BYTES") == b"[]"


def test_numbers_that_json_lacks_become_null():
    raw = np.array([math.nan, math.inf, 1.0], "<f4").tobytes()
    assert orjson.loads(to_json(raw, "FP32")) == [None, None, 1.0]


def test_bytes_that_are_no_text_need_the_binary_form():
    with pytest.raises(BadTensor, match="binary"):
        to_json(join_bytes([b"\xff"]), "BYTES")


@given(st.lists(st.binary(max_size=20)))
def test_bytes_elements_survive(items):
    assert split_bytes(join_bytes(items)) == items


@given(st.binary(max_size=40))
def test_splitting_anything_ends_or_refuses(raw):
    with contextlib.suppress(BadTensor):
        assert join_bytes(split_bytes(raw)) == raw


@given(st.floats(width=32))
def test_bf16_is_the_nearest_of_the_two_neighbours(x):
    [bits] = to_bf16(np.array([x], "<f4"))
    got = to_numpy(np.array([bits], "<u2").tobytes(), "BF16", [1])[0]
    if math.isnan(x):
        assert math.isnan(got)
    elif math.isfinite(x) and abs(x) < 3e38:
        # eight bits of precision, and nothing finer than the smallest subnormal
        assert abs(float(got) - x) <= max(abs(x) * 2**-8, 2**-133)
