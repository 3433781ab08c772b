"""Requests of the Open Inference Protocol to arrays and back, and what is refused."""

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jobs.common.open_inference import DTYPES, TensorSpec
from serving.errors import BadRequestError
from serving.protocol import answer, parse_request

NUMERIC = sorted(set(DTYPES) - {"BYTES"})
IMAGE = (TensorSpec(name="image", datatype="UINT8", shape=(-1, 2, 2, 1)),)
OUTPUTS = (TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 3)),
           TensorSpec(name="label", datatype="BYTES", shape=(-1,)))
ANSWERS = {"probabilities": np.array([[0.25, 0.5, 0.25]], np.float32), "label": np.array(["grün"], object)}


def parse(message: Any, tail: bytes = b"", specs: Any = IMAGE, length: str | None = None, max_rows: int = 8) -> Any:
    head = message if isinstance(message, bytes) else json.dumps(message).encode()
    if tail and length is None:
        length = str(len(head))
    return parse_request(head + tail, length, specs, OUTPUTS, max_rows)


def image(**fields: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "shape": [1, 2, 2, 1], "datatype": "UINT8", "data": [0, 1, 2, 255], **fields}]}


def values(datatype: str) -> Any:
    dtype = np.dtype(DTYPES[datatype])
    elements = {"elements": st.floats(allow_nan=False, allow_infinity=False, width=8 * dtype.itemsize)} if dtype.kind == "f" else {}
    return hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=3, max_side=4), **elements)


@given(st.data(), st.sampled_from(NUMERIC))
def test_every_datatype_arrives_as_it_was_sent(data: Any, datatype: str) -> None:
    sent = data.draw(values(datatype))
    specs = (TensorSpec(name="x", datatype=datatype, shape=(-1,) * sent.ndim),)
    tensor = {"name": "x", "shape": list(sent.shape), "datatype": datatype}
    nested = data.draw(st.booleans())
    in_json = parse({"inputs": [tensor | {"data": (sent if nested else sent.ravel()).tolist()}]}, specs=specs)
    raw = sent.astype(sent.dtype.newbyteorder("<")).tobytes()
    binary = parse({"inputs": [tensor | {"parameters": {"binary_data_size": len(raw)}}]}, raw, specs)
    for got in (in_json, binary):
        assert got.inputs["x"].dtype == sent.dtype
        np.testing.assert_array_equal(got.inputs["x"], sent)
        assert got.rows == len(sent)


def test_whole_numbers_beyond_int64_are_not_rounded() -> None:
    specs = (TensorSpec(name="x", datatype="UINT64", shape=(-1,)),)
    for data in ([2**63 + 1, 0], [2**64 - 1, 1], [[2**64 - 1]]):
        sent = {"name": "x", "shape": [np.size(data)], "datatype": "UINT64", "data": np.ravel(np.array(data, object)).tolist()}
        assert parse({"inputs": [sent]}, specs=specs).inputs["x"].tolist() == np.ravel(np.array(data, object)).tolist()
    for over in ([1.8446744073709552e19], [2**63, -1]):
        sent = {"name": "x", "shape": [len(over)], "datatype": "UINT64", "data": over}
        with pytest.raises(BadRequestError, match="outside UINT64"):
            parse({"inputs": [sent]}, specs=specs)


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=5))
def test_texts_arrive_as_they_were_sent(texts: list[str]) -> None:
    specs = (TensorSpec(name="text", datatype="BYTES", shape=(-1,)),)
    tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES"}
    raw = b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in texts)
    for got in (parse({"inputs": [tensor | {"data": texts}]}, specs=specs),
                parse({"inputs": [tensor | {"parameters": {"binary_data_size": len(raw)}}]}, raw, specs)):
        assert [element.decode() for element in got.inputs["text"]] == texts


def test_an_image_may_come_as_a_file_in_base64_and_pixels_as_floats_that_are_whole() -> None:
    got = parse(image(shape=[1], datatype="BYTES", data=["iVBORw=="], parameters={"content_type": "base64"}))
    assert got.inputs["image"].tolist() == [b"\x89PNG"]
    got = parse(image(data=[0.0, 1.0, 2.0, 255.0]))
    assert got.inputs["image"].dtype == np.uint8
    assert got.inputs["image"].ravel().tolist() == [0, 1, 2, 255]


@pytest.mark.parametrize(("message", "says"), [
    (b"{", "no JSON"),
    (b"[" * 5000, "no JSON"),
    (b'{"inputs": [{"name": "image", "shape": [1,2,2,1], "datatype": "UINT8", "data": [NaN, 1, 2, 3]}]}', "no JSON"),
    ([], "no JSON object"),
    ({}, "`inputs` is missing"),
    ({"inputs": []}, "`inputs` is missing"),
    ({"inputs": [3]}, "no object with a `name`"),
    ({"inputs": image()["inputs"] * 2}, "twice"),
    (image(name="pixels"), "no input 'pixels': it takes image"),
    (image(datatype="FP32"), "is UINT8, not FP32"),
    (image(datatype=None), "is UINT8, not None"),
    (image(shape=[1, 4]), "has shape [1, 4]"),
    (image(shape=[-1, 2, 2, 1]), "no list of whole numbers"),
    (image(shape=[1.5, 2, 2, 1]), "no list of whole numbers"),
    (image(shape=[True, 2, 2, 1]), "no list of whole numbers"),
    (image(shape=[0, 2, 2, 1], data=[]), "1 or more"),
    (image(shape=[10**15, 2, 2, 1]), "has 4 values"),
    (image(shape=[9, 2, 2, 1], data=[0] * 36), "9 rows in one request: at most 8"),
    (image(data=[1, 2, 3]), "has 3 values"),
    (image(data=[[1, 2], [3]]), "ragged"),
    (image(data=[[1, 2], [3, 4]]), "in shape [2, 2]"),
    (image(data=[1, 2, 3, 256]), "outside UINT8: 0 to 255"),
    (image(data=[1, 2, 3, -1]), "outside UINT8"),
    (image(data=[1, 2, 3, 0.5]), "holds fractions"),
    (image(data=[1, 2, 3, 1e300]), "outside UINT8"),
    (image(data=[1, 2, 3, 10**400]), "no JSON"),
    (image(data=[1, 2, 3, 2**70]), "outside UINT8"),
    (image(data=["1", "2", "3", "4"]), "no UINT8"),
    (image(data=[True, False, True, False]), "no UINT8"),
    (image(data=[None, 1, 2, 3]), "no UINT8"),
    (image(data="abcd"), "or no list"),
    (image(data={}), "or no list"),
    (image(parameters=[]), "`parameters` is no object"),
    (image(parameters={"binary_data_size": 4}), "0 bytes are left in the body"),
    (image(parameters={"binary_data_size": -1}), "binary_data_size"),
    (image(parameters={"binary_data_size": "4"}), "binary_data_size"),
    (image(datatype="BYTES", shape=[1], data=["#"], parameters={"content_type": "base64"}), "not base64"),
    (image(datatype="BYTES", shape=[2], data=["a"]), "must be 2 strings"),
    (image() | {"id": 7}, "`id` is no string"),
    (image() | {"outputs": [{"name": "logits"}]}, "no output 'logits': it has probabilities, label"),
    (image() | {"outputs": 3}, "`outputs` is missing"),
    (image() | {"parameters": {"binary_data_output": 1}}, "neither true nor false"),
])
def test_what_is_wrong_is_named(message: Any, says: str) -> None:
    with pytest.raises(BadRequestError) as error:
        parse(message)
    assert says in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(("size", "tail", "length", "says"), [
    (4, b"abc", None, "3 bytes are left"),
    (3, b"abc", None, "4 values of UINT8 are 4"),
    (4, b"abcde", None, "1 bytes of the body belong to no tensor"),
    (4, b"abcd", "9999", "the length of the JSON"),
    (4, b"abcd", "-3", "the length of the JSON"),
    (4, b"abcd", "²", "the length of the JSON"),
    (4, b"abcd", "7", "no JSON"),
])
def test_binary_sizes_that_do_not_add_up_are_refused(size: int, tail: bytes, length: str | None, says: str) -> None:
    tensor = {"name": "image", "shape": [1, 2, 2, 1], "datatype": "UINT8", "parameters": {"binary_data_size": size}}
    with pytest.raises(BadRequestError, match=says):
        parse({"inputs": [tensor]}, tail, length=length)


@pytest.mark.parametrize("raw", [b"\x05\x00\x00\x00abc", b"\x01\x00", b"\x01\x00\x00\x00a" * 2, b"", b"\xff\xff\xff\xffa"])
def test_broken_elements_of_bytes_are_refused(raw: bytes) -> None:
    specs = (TensorSpec(name="text", datatype="BYTES", shape=(-1,)),)
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    with pytest.raises(BadRequestError):
        parse({"inputs": [tensor]}, raw, specs, length=None if raw else str(len(json.dumps({"inputs": [tensor]}))))


@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(-5, 300).map(str)))
def test_any_bytes_are_answered_or_refused(body: bytes, length: str | None) -> None:
    with pytest.raises(BadRequestError):
        parse_request(body, length, IMAGE, OUTPUTS, 8)


NAMES = st.sampled_from(["name", "shape", "datatype", "data", "parameters", "inputs", "binary_data_size"])
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner), max_leaves=12)


@given(st.dictionaries(st.sampled_from(["name", "shape", "datatype", "data", "parameters"]), JSON))
def test_any_tensor_is_answered_or_refused(changes: dict[str, Any]) -> None:
    try:
        got = parse(image(**changes))
    except BadRequestError:
        return
    assert got.inputs["image"].shape[0] == got.rows >= 1


def test_an_answer_has_the_outputs_that_were_asked_for_each_as_it_was_asked_for() -> None:
    about = {"model_name": "m", "model_version": "3", "parameters": {"artifact_digest": "ab"}}
    data, length = answer(parse(image()), ANSWERS, OUTPUTS, about)
    assert length is None
    assert json.loads(data) == about | {"outputs": [
        {"name": "probabilities", "datatype": "FP32", "shape": [1, 3], "data": [0.25, 0.5, 0.25]},
        {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["grün"]}]}

    asked = image() | {"id": "x", "outputs": [{"name": "label", "parameters": {"binary_data": True}}]}
    data, length = answer(parse(asked), ANSWERS, OUTPUTS, about)
    assert length is not None
    head = json.loads(data[:length])
    assert head["id"] == "x"
    assert head["outputs"] == [{"name": "label", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 9}}]
    assert data[length:] == b"\x05\x00\x00\x00" + "grün".encode()

    data, length = answer(parse(image() | {"parameters": {"binary_data_output": True}}), ANSWERS, OUTPUTS, about)
    assert data[length:] == ANSWERS["probabilities"].tobytes() + b"\x05\x00\x00\x00" + "grün".encode()
