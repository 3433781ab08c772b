"""Requests of the Open Inference Protocol to arrays and back, and what is refused."""

import json
import struct
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jobs.common.artifact.tensor_spec import DTYPES, TensorSpec
from serving.core.errors import BadRequestError
from serving.protocols.classification import likeliest
from serving.protocols.open_inference_json import MOST_BRACKETS, MOST_VALUES, answer, parse_request
from serving.protocols.tensor_values import joined
from serving.text.openai_chat import ChatRequest
from serving.text.openai_protocol import CompletionRequest
from serving.text.openai_protocol import parse as completion

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
    elements = {"elements": st.floats(allow_nan=False, allow_infinity=False,
                                      width=8 * dtype.itemsize)} if dtype.kind == "f" else {}
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
        sent = {"name": "x", "shape": [np.size(data)], "datatype": "UINT64",
                "data": np.ravel(np.array(data, object)).tolist()}
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
    (image(datatype=None), "datatype of input 'image' is missing: it is UINT8"),
    (image(datatype=[[]]), "is UINT8, not lists"),
    (image(shape=[1, 4]), "has shape [1, 4]: as UINT8 the model takes [-1, 2, 2, 1]"),
    (image(shape=[1, 2, 2, 1], datatype="BYTES"), "has shape [1, 2, 2, 1]: as BYTES the model takes [-1]"),
    (image(shape=None), "is missing, or no list of whole numbers: as UINT8 the model takes [-1, 2, 2, 1]"),
    (image(shape=[-1, 2, 2, 1]), "no list of whole numbers"),
    (image(shape=[1.5, 2, 2, 1]), "no list of whole numbers"),
    (image(shape=[True, 2, 2, 1]), "no list of whole numbers"),
    (image(shape=[0, 2, 2, 1], data=[]), "1 or more: they have image [0, 2, 2, 1]"),
    (image(shape=[10**15, 2, 2, 1]), "1000000000000000 rows in one request: at most 8"),
    (image(shape=[9, 2, 2, 1], data=[0] * 36),
     "9 rows in one request: at most 8 (--max-batch-rows). Send them in several"),
    (image(data=[1, 2, 3]), "has 3 values in shape [3], its shape [1, 2, 2, 1] says 4"),
    (image(data=[[1, 2], [3]]), "ragged"),
    (image(data=[[1, 2], [3, 4]]), "in shape [2, 2]"),
    (image(data=[1, 2, 3, 256]), "outside UINT8: 0 to 255"),
    (image(data=[1, 2, 3, -1]), "outside UINT8"),
    (image(data=[1, 2, 3, 0.5]), "holds fractions"),
    (image(data=[1, 2, 3, 1e300]), "outside UINT8"),
    (image(data=[1, 2, 3, 10**400]), "no JSON"),
    (image(data=[1, 2, 3, 2**70]), "outside UINT8"),
    (image(data=["1", "2", "3", "4"]), "holds strings: UINT8 is numbers"),
    (image(data=[True, False, True, False]), "holds true or false: UINT8 is numbers"),
    (image(data=[1, 2, True, 0]), "holds true or false: UINT8 is numbers"),
    (image(data=[None, 1, 2, {}]), "holds null and objects: UINT8 is numbers"),
    (image(data=[1, 2, 3, [4]]), "holds lists: UINT8 is numbers"),
    (image(data=[[[[[1], [2]], [[3], [4]]]]]), "in shape [1, 1, 2, 2], its shape [1, 2, 2, 1] says 4"),
    (image(data="abcd"), "or no list"),
    (image(data={}), "or no list"),
    (image(parameters=[]), "`parameters` is no object"),
    (image(parameters={"binary_data_size": 4}), "both `data` and `binary_data_size`: send one of them"),
    (image(data=None, parameters={"binary_data_size": 4}), "0 bytes are left in the body"),
    (image(data=None, parameters={"binary_data_size": -1}), "binary_data_size"),
    (image(data=None, parameters={"binary_data_size": "4"}), "binary_data_size"),
    (image(data=None, parameters={"binary_data_size": json.loads("[" * 900 + "]" * 900)}),
     "binary_data_size of 'image' is lists"),
    (image(data=None), "`data` of input 'image' is missing, or no list: its shape [1, 2, 2, 1] says 4 values"),
    (image(datatype="BYTES", shape=[1], data=["#"], parameters={"content_type": "base64"}), "not base64"),
    (image(datatype="BYTES", shape=[2], data=["a"]), "has 1 values in shape [1], its shape [2] says 2"),
    (image(datatype="BYTES", shape=[2], data=["a", 7]), "holds numbers: BYTES is strings"),
    (image() | {"id": 7}, "`id` is no string"),
    (image() | {"outputs": [{"name": "logits"}]}, "no output 'logits': it has probabilities, label"),
    (image() | {"outputs": [{"name": "label", "parameters": {"shared_memory_region": "r"}}]},
     "output 'label' has the parameter 'shared_memory_region', which this endpoint does not know"),
    (image() | {"outputs": [{"name": "label", "parameters": {"classification": -1}}]},
     "is -1: it must be a number of classes"),
    (image() | {"outputs": 3}, "`outputs` is missing"),
    (image() | {"parameters": {"binary_data_output": 1}}, "neither true nor false"),
])
def test_what_is_wrong_is_named(message: Any, says: str) -> None:
    with pytest.raises(BadRequestError) as error:
        parse(message)
    assert says in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(("datatype", "says"), [("UINT8", "UINT8 is numbers"), ("FP32", "FP32 is numbers"),
                                                ("BOOL", "BOOL is true or false")])
def test_strings_in_a_tensor_of_numbers_cost_nothing(datatype: str, says: str) -> None:
    """As an array of text they would take the longest times their count times 4 bytes: 40 GB of 300 KB."""
    specs = (TensorSpec(name="x", datatype=datatype, shape=(-1, 100_000)),)
    sent = {"name": "x", "datatype": datatype, "shape": [1, 100_000], "data": ["x" * 100_000, *[""] * 99_999]}
    tracemalloc.start()
    with pytest.raises(BadRequestError, match=f"holds strings: {says}"):
        parse({"inputs": [sent]}, specs=specs)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize(("body", "says"), [
    (b'{"inputs": [' + b"[]," * (MOST_BRACKETS - 1) + b"[]]}", "has 65,538 opening brackets: at most 65,536"),
    (b'{"inputs": [' + b"{}," * 5_000_000 + b"{}]}", "commas: at most 524,288"),
    (b'{"inputs": [' + b"1," * MOST_VALUES + b"2,3]}", "has 524,289 commas: at most 524,288"),
])
def test_a_body_of_more_than_is_made_into_objects_is_not_read(body: bytes, says: str) -> None:
    with pytest.raises(BadRequestError, match=says):
        parse(body)
    for kind in (CompletionRequest, ChatRequest):
        with pytest.raises(BadRequestError, match=says):
            completion(body, kind)


def test_nested_data_is_looked_at_no_deeper_than_its_shape() -> None:
    """A thousand lists in each other, beside many values:
    going down all of them would look at each value a thousand times."""
    specs = (TensorSpec(name="x", datatype="INT64", shape=(-1, 1)),)
    body = b'{"inputs": [{"name": "x", "datatype": "INT64", "shape": [1, 1], "data": [[%s%s]]}]}' % (
        b"[" * 900 + b"]" * 900, b",1" * 500_000)
    began = time.process_time()
    with pytest.raises(BadRequestError, match=r"has 500001 values in shape \[1, 500001\], its shape \[1, 1\] says 1"):
        parse(body, specs=specs)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(("size", "tail", "length", "says"), [
    (4, b"abc", None, "3 bytes are left"),
    (3, b"abc", None, "has 3 bytes: 4 values of UINT8, as its shape .1, 2, 2, 1. says, are 4"),
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


@pytest.mark.parametrize("raw", [b"\x05\x00\x00\x00abc", b"\x01\x00", b"\x01\x00\x00\x00a" * 2, b"",
                                 b"\xff\xff\xff\xffa"])
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


def test_whole_numbers_beside_one_with_a_point_are_not_rounded() -> None:
    specs = (TensorSpec(name="x", datatype="INT64", shape=(-1,)),)
    sent = {"name": "x", "datatype": "INT64", "shape": [2], "data": [2**53 + 1, 3.0]}
    assert parse({"inputs": [sent]}, specs=specs).inputs["x"].tolist() == [2**53 + 1, 3]


def test_the_likeliest_classes_come_in_place_of_values_if_they_are_asked_for() -> None:
    about = {"outputs": OUTPUTS, "labels": ("a", "b", "c")}
    asked = parse(image() | {"outputs": [{"name": "probabilities",
                                          "parameters": {"classification": 2, "binary_data": True}}]})
    outputs, told = likeliest(asked, ANSWERS, about)
    data, length = answer(asked, outputs, told["outputs"], {})
    assert length is not None
    assert json.loads(data[:length])["outputs"][0] | {"parameters": None} == {
        "name": "probabilities", "datatype": "BYTES", "shape": [1, 2], "parameters": None}
    assert data[length:] == joined([b"0.500000:1:b", b"0.250000:0:a"])
    asked = parse(image() | {"outputs": [{"name": "probabilities", "parameters": {"classification": 9}}]})
    assert likeliest(asked, ANSWERS, about | {"labels": ()})[0]["probabilities"].tolist() == [
        ["0.500000:1", "0.250000:0", "0.250000:2"]]
    asked = parse(image() | {"outputs": [{"name": "label", "parameters": {"classification": 1}}]})
    with pytest.raises(BadRequestError, match="output 'label' has no classes to count"):
        likeliest(asked, ANSWERS, about)
    assert likeliest(parse(image()), ANSWERS, about) == (ANSWERS, about)


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
    assert head["outputs"] == [{"name": "label", "datatype": "BYTES", "shape": [1],
                                "parameters": {"binary_data_size": 9}}]
    assert data[length:] == b"\x05\x00\x00\x00" + "grün".encode()

    data, length = answer(parse(image() | {"parameters": {"binary_data_output": True}}), ANSWERS, OUTPUTS, about)
    assert data[length:] == ANSWERS["probabilities"].tobytes() + b"\x05\x00\x00\x00" + "grün".encode()
