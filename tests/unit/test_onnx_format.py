"""An ONNX file in an artifact is one graph with all its numbers, or it is refused."""

import numpy as np
import pytest

from cluster.core.errors import ArtifactError
from cluster.core.storage import Store
from jobs.common.artifact.artifact import open_artifact, write_artifact
from tests.unit.test_artifact import a_probe, an_onnx, check_refused_written_and_opened, describe


def test_a_plain_onnx_file_is_taken(tmp_path):
    store, given = Store.open(str(tmp_path)), {"description": describe(), "probe": a_probe()}
    write_artifact(store, "x", **given, files={"model.onnx": an_onnx().SerializeToString()})
    assert "model.onnx" in open_artifact(tmp_path / "x").manifest.paths


@pytest.mark.parametrize("where", ["initializer", "branch"])
def test_an_onnx_file_that_reads_other_files_is_refused(tmp_path, where):
    from onnx import StringStringEntryProto, TensorProto, numpy_helper

    outside = {"data_location": TensorProto.EXTERNAL,
               "external_data": [StringStringEntryProto(key="location", value="../secret")]}
    made = an_onnx(**outside if where == "branch" else {})
    if where == "initializer":
        made.graph.initializer.append(numpy_helper.from_array(np.ones((2, 2), np.float32), "w"))
        made.graph.initializer[0].data_location = TensorProto.EXTERNAL
    check_refused_written_and_opened(tmp_path, "model.onnx", made.SerializeToString(), "keeps numbers in another file")


def test_an_onnx_file_that_needs_native_code_is_refused(tmp_path):
    made = an_onnx()
    made.graph.node[1].domain = "com.example.evil"
    check_refused_written_and_opened(tmp_path, "model.onnx", made.SerializeToString(),
                                     "needs the operators of 'com.example.evil'")


@pytest.mark.parametrize("data", [b"", b"{}", b"\x08\x07", b"\xff" * 40, an_onnx().SerializeToString()[:-3]])
def test_what_is_no_onnx_is_refused_under_its_name(tmp_path, data):
    check_refused_written_and_opened(tmp_path, "model.onnx", data, "is not ONNX")


def test_what_onnx_runtime_would_take_for_its_own_format_is_refused(tmp_path):
    """A field of 2 bytes puts ORTM at byte 4, behind which any graph may follow."""
    polyglot = b"\x9a\x06\x04\x00ORTM" + an_onnx().SerializeToString()
    check_refused_written_and_opened(tmp_path, "model.onnx", polyglot, "is of ONNX Runtime's own format")


def test_a_field_of_number_0_is_no_onnx(tmp_path):
    check_refused_written_and_opened(tmp_path, "model.onnx", b"\x02\x01x" + an_onnx().SerializeToString(),
                                     "is not ONNX")


def test_a_session_is_told_that_it_reads_onnx(tmp_path):
    from jobs.common.predictor.onnx_model import OnnxModel

    given = {"description": describe(), "probe": a_probe()}
    made = write_artifact(Store.open(str(tmp_path)), "x", **given, files={"model.onnx": an_onnx().SerializeToString()})
    with pytest.raises(ArtifactError, match=r"refused by ONNX Runtime .*protobuf parsing failed"):
        OnnxModel(made, lambda _, rows: (rows,), b"\x00\x00\x00\x00ORTM" + bytes(100))
