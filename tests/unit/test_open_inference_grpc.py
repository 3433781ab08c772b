"""gRPC's messages: to requests and from answers, whatever the datatype, and what is no request."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jobs.common.artifact.tensor_spec import DTYPES, TensorSpec
from serving.core.errors import BadRequestError
from serving.protocols import open_inference_grpc as messages
from serving.protocols.open_inference_json import MOST_VALUES, InferRequest, Output
from serving.protocols.tensor_values import joined, to_bytes
from tests.newcomer import ROOT

TYPED = [datatype for datatype in DTYPES if datatype != "FP16"]
SPEC = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))


@st.composite
def tensors(draw: st.DrawFn, datatypes: list[str]) -> tuple[TensorSpec, Any]:
    datatype = draw(st.sampled_from(datatypes))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
    if datatype == "BYTES":
        values = np.empty(shape, object)
        values.ravel()[:] = draw(st.lists(st.binary(max_size=8), min_size=values.size, max_size=values.size))
    else:
        dtype = np.dtype(DTYPES[datatype])
        finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
        values = draw(hnp.arrays(dtype, shape, elements=hnp.from_dtype(dtype, **finite)))
    return TensorSpec(name="x", datatype=datatype, shape=(-1, *shape[1:])), values


def a_call(spec: TensorSpec, values: Any, *, raw: bool) -> Any:
    call = messages.message("ModelInferRequest")(model_name="m", id="mine")
    tensor = call.inputs.add(name=spec.name, datatype=spec.datatype, shape=values.shape)
    if raw:
        call.raw_input_contents.append(to_bytes(values, spec))
    else:
        field = {"BYTES": "bytes_contents", "BOOL": "bool_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
                 "INT64": "int64_contents", "UINT64": "uint64_contents"}.get(spec.datatype)
        field = field or ("int_contents" if spec.datatype.startswith("INT") else "uint_contents")
        getattr(tensor.contents, field).extend(values.ravel().tolist())
    return call


def sent(message: Any) -> Any:
    """As it arrives."""
    return type(message).FromString(message.SerializeToString())


def check_round_trip(spec: TensorSpec, values: Any, *, raw: bool) -> None:
    call = sent(a_call(spec, values, raw=raw))
    request = messages.parse_call(call, [spec], [spec], 10)
    assert request.id == "mine"
    assert request.inputs["x"].dtype == np.dtype(DTYPES[spec.datatype])
    assert np.array_equal(request.inputs["x"], values)
    said = {"model_name": "m", "model_version": "3", "parameters": {"artifact_digest": "d"}}
    answer = sent(messages.answer_call(call, request, request.inputs, [spec], said))
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "3", "mine")
    assert answer.parameters["artifact_digest"].string_param == "d"
    back = sent(call)  # the answer as a request, so that the same code reads it
    del back.inputs[:], back.raw_input_contents[:]
    back.inputs.add().ParseFromString(answer.outputs[0].SerializeToString())
    back.raw_input_contents.extend(answer.raw_output_contents)
    assert bool(answer.raw_output_contents) is raw
    assert np.array_equal(messages.parse_call(back, [spec], [spec], 10).inputs["x"], values)


@given(tensors(list(DTYPES)))
def test_raw_tensors_of_every_datatype_come_and_go(tensor: tuple[TensorSpec, Any]) -> None:
    check_round_trip(*tensor, raw=True)


@given(tensors(TYPED))
def test_typed_tensors_of_every_datatype_come_and_go(tensor: tuple[TensorSpec, Any]) -> None:
    check_round_trip(*tensor, raw=False)


@given(st.binary(max_size=200), st.sampled_from(["ModelInferRequest", "ModelReadyRequest"]))
def test_bytes_that_are_no_message_are_refused_and_break_nothing(data: bytes, name: str) -> None:
    try:
        call = messages.parsed(name, data)
        if name == "ModelInferRequest":
            messages.parse_call(call, [SPEC], [SPEC], 10)
    except BadRequestError:
        pass


def refused(spec: TensorSpec = SPEC, **changed: Any) -> str:
    call = a_call(SPEC, np.ones((1, 2), np.float32), raw=False)
    for name, value in changed.items():
        if name == "raw":
            call.raw_input_contents.extend(value)
        elif name == "outputs":
            call.outputs.add(name=value)
        elif name == "parameters":
            call.parameters["timeout"].CopyFrom(value)
        else:
            call.inputs[0].MergeFrom(type(call.inputs[0])(**{name: value}))
    with pytest.raises(BadRequestError) as error:
        messages.parse_call(sent(call), [spec], [SPEC], 10)
    return str(error.value)


def test_what_does_not_fit_is_refused_with_the_same_words_as_over_http() -> None:
    contents = messages.message("InferTensorContents")
    both = "input 'x' is FP32, and has {}: its values go into {} alone"
    assert refused(contents=contents(int_contents=[1])) == both.format("int_contents and fp32_contents",
                                                                       "fp32_contents")
    assert refused(raw=[bytes(8)]) == both.format("fp32_contents", "raw_input_contents")
    assert refused(raw=[bytes(8), b""]) == "raw_input_contents has 2 elements for 1 inputs: one for each"
    assert refused(datatype="INT32") == (
        "input 'x' is INT32, and has fp32_contents: its values go into int_contents alone")
    assert refused(datatype="FLOAT") == "input 'x' is FP32, not FLOAT"
    assert refused(name="y") == "the model has no input 'y': it takes x"
    assert refused(shape=[2]) == "input 'x' has shape [1, 2, 2]: as FP32 the model takes [-1, 2], where -1 is any size"
    assert refused(contents=contents(fp32_contents=[1])) == (
        "`data` of input 'x' has 3 values in shape [3], its shape [1, 2] says 2")
    assert refused(outputs="z") == "the model has no output 'z': it has x"
    assert refused(TensorSpec(name="x", datatype="FP16", shape=(-1, 2)), datatype="FP16") == (
        "input 'x' is FP16, and has fp32_contents: its values go into raw_input_contents alone")
    infinite = a_call(SPEC, np.full((1, 2), np.inf, np.float32), raw=True)
    with pytest.raises(BadRequestError, match="not finite"):
        messages.parse_call(infinite, [SPEC], [SPEC], 10)
    narrow = TensorSpec(name="x", datatype="INT8", shape=(-1,))
    with pytest.raises(BadRequestError, match="outside INT8: -128 to 127"):
        messages.parse_call(a_call(narrow, np.array([300]), raw=False), [narrow], [narrow], 10)
    cut = messages.message("ModelInferRequest")(raw_input_contents=[joined([b"abc"])[:-1]])
    cut.inputs.add(name="x", datatype="BYTES", shape=[1])
    with pytest.raises(BadRequestError, match="ends in the middle of an element"):
        messages.parse_call(cut, [SPEC], [SPEC], 10)


@pytest.mark.parametrize("field", [4, 5, 6, 7])
def test_a_message_of_more_fields_than_are_made_into_objects_is_not_read(field: int) -> None:
    """Two bytes make a tensor: 16 MB of them took 1.4 s and 700 MB."""
    with pytest.raises(BadRequestError, match="more than 65,536 fields: send tensors as raw_input_contents"):
        messages.parsed("ModelInferRequest", bytes([field << 3 | 2, 0]) * 8_000_000)
    call = messages.message("ModelInferRequest")()
    call.inputs.add(name="x", datatype="BYTES", shape=[messages.MOST_FIELDS]).contents.bytes_contents.extend(
        [b""] * messages.MOST_FIELDS)
    with pytest.raises(BadRequestError, match="more than 65,536 fields"):
        messages.parsed("ModelInferRequest", call.SerializeToString())


def test_a_long_message_is_read_and_one_that_is_no_message_is_not() -> None:
    call = a_call(TensorSpec(name="x", datatype="INT64", shape=(-1, 2)), np.full((1, 40_000), 2**40), raw=False)
    call.inputs[0].parameters["a"].string_param = "b" * 70_000
    data = call.SerializeToString()
    assert messages.parsed("ModelInferRequest", data) == call
    for broken in (data[:-1], data + b"\x0b", data + b"\xff" * 100_000, b"\xff" * 100_000, data + b"\x2a\x05"):
        with pytest.raises(BadRequestError, match="the message is no ModelInferRequest"):
            messages.parsed("ModelInferRequest", broken)


def test_more_typed_values_than_are_made_into_objects_are_refused() -> None:
    call = messages.message("ModelInferRequest")()
    call.inputs.add(name="x", datatype="UINT8", shape=[1, 2]).contents.uint_contents.extend([1] * (MOST_VALUES + 1))
    with pytest.raises(BadRequestError, match="524,289 values in uint_contents: at most 524,288"):
        messages.parse_call(call, [SPEC], [SPEC], 10)


def test_parameters_and_selected_outputs_are_read() -> None:
    call = a_call(SPEC, np.ones((1, 2), np.float32), raw=True)
    for name, value in (("string", "a"), ("int64", -3), ("bool", True), ("double", 0.5), ("uint64", 2**63)):
        setattr(call.parameters[name], f"{name}_param", value)
    call.outputs.add(name="b")
    given = [TensorSpec(name=name, datatype="FP32", shape=(-1,)) for name in "abc"]
    call.outputs[0].parameters["classification"].int64_param = 3
    request = messages.parse_call(sent(call), [SPEC], given, 10)
    assert request.outputs == {"b": Output(binary=False, classes=3)}
    assert request.parameters == {"string": "a", "int64": -3, "bool": True, "double": 0.5, "uint64": 2**63}
    answer = messages.answer_call(call, request, {name: np.zeros(1, np.float32) for name in "abc"}, given,
                                  {"model_name": "m", "model_version": "1", "parameters": {}})
    assert [output.name for output in answer.outputs] == ["b"]


def test_an_output_of_fp16_makes_an_answer_raw() -> None:
    half = TensorSpec(name="y", datatype="FP16", shape=(-1,))
    call = a_call(SPEC, np.ones((1, 2), np.float32), raw=False)
    request = InferRequest(inputs={}, rows=1)
    answer = messages.answer_call(call, request, {"y": np.ones(1, np.float16)}, [half],
                                  {"model_name": "m", "model_version": "1", "parameters": {}})
    assert list(answer.raw_output_contents) == [np.ones(1, np.float16).tobytes()]


def test_the_messages_are_those_that_make_proto_makes_of_the_proto(tmp_path: Path) -> None:
    made = tmp_path / "made.binpb"
    # where make runs the tests itself
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    said = subprocess.run(["make", "-n", "-o", ".venv/.installed", f"BIN={Path(sys.executable).parent}", "proto"],
                          cwd=ROOT,
                          env=alone, capture_output=True, text=True, check=True)
    own = str(messages.DESCRIPTION.relative_to(ROOT))
    assert f"={own} " in said.stdout
    subprocess.run(said.stdout.replace(f"={own} ", f"={made} "), shell=True, cwd=ROOT, check=True)
    assert made.read_bytes() == messages.DESCRIPTION.read_bytes(), "run `make proto`"


def test_they_do_not_get_in_the_way_of_a_clients_own() -> None:
    from tritonclient.grpc import service_pb2

    theirs = service_pb2.ModelInferRequest(model_name="m")
    theirs.parameters["timeout"].int64_param = 3
    ours = messages.message("ModelInferRequest")
    assert type(theirs) is not ours
    assert ours.FromString(theirs.SerializeToString()).parameters["timeout"].int64_param == 3
