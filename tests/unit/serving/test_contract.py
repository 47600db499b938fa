"""Requests that fit a signature, and what each that does not is told."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sundog.serving.contract import BadRequest, Contract, Parsed
from sundog.serving.tensors import from_json, join_bytes

SIGNATURE = {
    "inputs": [
        {"name": "pixels", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "scale", "datatype": "INT64", "shape": [-1, 1]},
    ],
    "outputs": [
        {"name": "logits", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "label", "datatype": "INT64", "shape": [-1]},
    ],
}
CONTRACT = Contract("digits", "3", SIGNATURE)
PIXELS = {"name": "pixels", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}
SCALE = {"name": "scale", "datatype": "INT64", "shape": [1, 1], "data": [7]}


def body(*inputs, **more):
    return orjson.dumps({"inputs": list(inputs), **more})


def test_a_good_request_in_any_order():
    parsed = CONTRACT.read(body(SCALE, PIXELS, id="abc"))
    assert parsed.raw == [from_json([1.0, 2.0], "FP32", 2), from_json([7], "INT64", 1)]
    assert (parsed.rows, parsed.id, parsed.shapes) == (1, "abc", [(1, 2), (1, 1)])


@pytest.mark.parametrize(
    ("request_body", "says"),
    [
        (b"{", "not JSON"), (b"\xff\xfe", "not JSON"), (b"", "not JSON"),
        (b'{"inputs":[{"name":"pixels","data":[NaN]}]}', "not JSON"),
        (b"[]", "not a JSON object"), (b"{}", "'inputs' is missing"),
        (b'{"inputs":{}}', "'inputs' is missing"), (body(3), "not an object"),
        (body(PIXELS), "'scale' is missing"), (body(), "'pixels' is missing"),
        (body(PIXELS, PIXELS, SCALE), "given twice"),
        (body(PIXELS | {"name": "pixel"}, SCALE), "did you mean 'pixels'"),
        (body(PIXELS | {"name": 3}, SCALE), "no input 3"),
        (body(PIXELS | {"datatype": "FP64"}, SCALE), "is FP32, the request says 'FP64'"),
        (body(PIXELS | {"shape": [1, 3]}, SCALE), "shape [1, 3], the model takes [-1, 2]"),
        (body(PIXELS | {"shape": [2]}, SCALE), "shape [2], the model takes"),
        (body(PIXELS | {"shape": [-1, 2]}, SCALE), "list of whole numbers"),
        (body(PIXELS | {"shape": [1.0, 2]}, SCALE), "list of whole numbers"),
        (body(PIXELS | {"shape": None}, SCALE), "list of whole numbers"),
        (body(PIXELS | {"shape": [2, 2]}, SCALE), "2 values, the shape says 4"),
        (body(PIXELS | {"data": ["a", "b"]}, SCALE), "not FP32: 'a'"),
        (body({k: v for k, v in PIXELS.items() if k != "data"}, SCALE), "no 'data'"),
        (body(PIXELS | {"shape": [2, 2], "data": [1, 2, 3, 4]}, SCALE), "differ in rows"),
        (body(PIXELS, SCALE, id=7), "'id' is not a string"),
        (body(PIXELS, SCALE, outputs=3), "'outputs' is not a list"),
        (body(PIXELS, SCALE, outputs=[{"name": "x"}]), "no output 'x'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(request_body, says):
    with pytest.raises(BadRequest) as caught:
        CONTRACT.read(request_body)
    assert says in caught.value.message
    assert caught.value.status == 400


def test_a_shape_of_absurd_size_is_refused_before_anything_is_allocated():
    with pytest.raises(BadRequest) as caught:
        CONTRACT.read(body(PIXELS | {"shape": [2**60, 2]}, SCALE))
    assert caught.value.status == 413


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                    lambda x: st.lists(x, max_size=3) | st.dictionaries(
                        st.sampled_from(["inputs", "name", "shape", "datatype", "data", "pixels"]), x),
                    max_leaves=20))  # fmt: skip
def test_any_json_is_answered_or_refused(value):
    try:
        assert isinstance(
            CONTRACT.read(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)), Parsed
        )
    except BadRequest:
        pass
    except orjson.JSONEncodeError:  # integers over 64 bits are no test of ours
        pass


def answer(*, rows=1):
    return [
        ("FP32", [rows, 3], from_json([0.5] * 3 * rows, "FP32", 3 * rows)),
        ("INT64", [rows], from_json([4] * rows, "INT64", rows)),
    ]


def test_an_answer_is_the_protocols():
    parsed = CONTRACT.read(body(PIXELS, SCALE, id='q"1'))
    assert orjson.loads(CONTRACT.write(parsed, answer())[0]) == {
        "model_name": "digits", "model_version": "3", "id": 'q"1',
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [1, 3], "data": [0.5, 0.5, 0.5]},
            {"name": "label", "datatype": "INT64", "shape": [1], "data": [4]},
        ],
    }  # fmt: skip


def test_only_the_wanted_outputs():
    parsed = CONTRACT.read(body(PIXELS, SCALE, outputs=[{"name": "label"}]))
    got = orjson.loads(CONTRACT.write(parsed, answer())[0])
    assert [o["name"] for o in got["outputs"]] == ["label"]
    assert "id" not in got


def with_binary(document, *tails):
    head = orjson.dumps(document)
    return head + b"".join(tails), len(head)


PIXELS_BINARY = {k: v for k, v in PIXELS.items() if k != "data"} | {
    "parameters": {"binary_data_size": 8}
}


def test_binary_tensors_in_and_out():
    raw = from_json([1.0, 2.0], "FP32", 2)
    document = {
        "inputs": [SCALE, PIXELS_BINARY],
        "outputs": [{"name": "logits", "parameters": {"binary_data": True}}, {"name": "label"}],
    }
    parsed = CONTRACT.read(*with_binary(document, raw))
    assert bytes(parsed.raw[0]) == raw
    got, size = CONTRACT.write(parsed, answer())
    head = orjson.loads(got[:size])
    assert head["outputs"][0]["parameters"] == {"binary_data_size": 12}
    assert "data" not in head["outputs"][0]
    assert head["outputs"][1]["data"] == [4]
    assert got[size:] == from_json([0.5] * 3, "FP32", 3)


def test_binary_output_for_all_unless_one_says_otherwise():
    document = {"inputs": [PIXELS, SCALE], "parameters": {"binary_data_output": True}}
    assert CONTRACT.read(orjson.dumps(document)).binary == {"logits", "label"}
    document["outputs"] = [
        {"name": "label", "parameters": {"binary_data": False}}, {"name": "logits"},
    ]  # fmt: skip
    assert CONTRACT.read(orjson.dumps(document)).binary == {"logits"}


@pytest.mark.parametrize(
    ("size", "tail", "says"),
    [
        (8, b"1234", "is not what the body holds"), (4, b"1234", "4 bytes of binary data"),
        (8, b"123456789", "belong to none"), ("8", b"12345678", "binary_data_size '8'"),
        (-1, b"12345678", "binary_data_size -1"), (2**70, b"12345678", "is not what"),
    ],
)  # fmt: skip
def test_binary_tensors_that_do_not_fit(size, tail, says):
    pixels = PIXELS_BINARY | {"parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [pixels, SCALE]}).encode()
    with pytest.raises(BadRequest) as caught:
        CONTRACT.read(head + tail, len(head))
    assert says in caught.value.message or "not JSON" in caught.value.message


def test_a_json_size_beyond_the_body():
    with pytest.raises(BadRequest, match="more than the body has"):
        CONTRACT.read(b"{}", 3)


def test_binary_strings_must_be_as_many_as_the_shape_says():
    text = Contract("t", "1", {
        "inputs": [{"name": "t", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": "t", "datatype": "BYTES", "shape": [-1]}],
    })  # fmt: skip
    raw = join_bytes([b"a", b"\xff"])
    item = {
        "name": "t",
        "datatype": "BYTES",
        "shape": [2],
        "parameters": {"binary_data_size": len(raw)},
    }
    assert bytes(text.read(*with_binary({"inputs": [item]}, raw)).raw[0]) == raw
    with pytest.raises(BadRequest, match="has not the 3 elements"):
        text.read(*with_binary({"inputs": [item | {"shape": [3]}]}, raw))


def test_plain_json_of_one_row_and_of_many():
    one, single = CONTRACT.parse_rows({"pixels": [1, 2], "scale": [7]})
    assert (single, one.rows, one.shapes) == (True, 1, [(1, 2), (1, 1)])
    assert orjson.loads(CONTRACT.write_rows(True, answer())) == {"logits": [0.5] * 3, "label": 4}
    many, single = CONTRACT.parse_rows({"pixels": [[1, 2], [3, 4]], "scale": [[7], [8]]})
    assert (single, many.rows) == (False, 2)
    assert orjson.loads(CONTRACT.write_rows(False, answer(rows=2))) == {
        "logits": [[0.5] * 3] * 2, "label": [4, 4],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ([1], "not a JSON object with the fields"), ({"pixel": [1, 2]}, "did you mean 'pixels'"),
        ({"pixels": [1, 2]}, "'scale' is missing"), ({"pixels": "x", "scale": [1]}, "has shape []"),
        ({"pixels": [1, "b"], "scale": [1]}, "field 'pixels'"),
        ({"pixels": [[1, 2], [3]], "scale": [[1], [1]]}, "field 'pixels'"),
    ],
)  # fmt: skip
def test_plain_json_that_does_not_fit(fields, says):
    with pytest.raises(BadRequest) as caught:
        CONTRACT.parse_rows(fields)
    assert says in caught.value.message


def test_only_signatures_with_a_free_first_dimension_are_stacked():
    assert CONTRACT.batchable
    fixed = {**SIGNATURE, "outputs": [{"name": "y", "datatype": "FP32", "shape": [3]}]}
    assert not Contract("s", "1", fixed).batchable
    text = {**SIGNATURE, "inputs": [{"name": "t", "datatype": "BYTES", "shape": [-1]}]}
    assert not Contract("s", "1", text).batchable


@pytest.mark.parametrize(
    "wrong",
    [
        body(PIXELS | {"datatype": "x" * 10_000}, SCALE), body(PIXELS | {"shape": [1] * 5000}, SCALE),
        body(PIXELS | {"name": "x" * 10_000}, SCALE), body(PIXELS | {"data": ["x" * 10_000]}, SCALE),
        body(PIXELS, SCALE, outputs=[{"name": "x" * 10_000}]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_echoed_in_short(wrong):
    with pytest.raises(BadRequest) as caught:
        CONTRACT.read(wrong)
    assert len(caught.value.message) < 400


def test_true_is_no_number():
    for value in (True, False):
        with pytest.raises(BadRequest, match=f"not FP32: {value}"):
            CONTRACT.read(body(PIXELS | {"data": [1.0, value]}, SCALE))
    with pytest.raises(BadRequest, match="not INT64: True"):
        CONTRACT.parse_rows({"pixels": [1, 2], "scale": [True]})
    everything = body(PIXELS, SCALE, parameters={"binary_data_output": True})
    assert CONTRACT.read(everything).binary == {"logits", "label"}


def test_rows_of_uneven_length_are_not_cut_into_even_ones():
    with pytest.raises(BadRequest, match="unevenly"):
        CONTRACT.parse_rows({"pixels": [[1, 2], [3], [4, 5, 6]], "scale": [[1], [2], [3]]})
