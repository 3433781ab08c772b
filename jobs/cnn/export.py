"""From the best checkpoint to what is handed over: a `.keras` file that is the same for the same weights,
and an ONNX file."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false

import io
import json
import re
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from cluster.core.documents import parse_json
from jobs.cnn.framework import keras, tf
from jobs.cnn.model import KERAS_FILE, is_seed, new_model, with_probabilities
from jobs.common.arrays import Array
from jobs.common.training.job import TrainingResult
from jobs.common.vision.build_info import BuildInfo

ONNX_FILE = "model.onnx"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def model_files(trained: TrainingResult) -> dict[str, bytes]:
    """The artifact's model, from pixels to probabilities: Keras's as it was trained and judged,
    ONNX's all in float32."""
    return {KERAS_FILE: keras_file(best_model(trained)), ONNX_FILE: onnx_file(best_model(trained, precision="fp32"))}


def best_model(trained: TrainingResult, **hardware: object) -> keras.Model:
    """The Keras model of the best checkpoint, with a softmax at its end. hardware: settings to change."""
    config = replace(trained.config, hardware=replace(trained.config.hardware, **hardware))
    with tf.device("CPU"):
        model = new_model(config, BuildInfo.of(trained.dataset, config.model))
        fill(model, trained.checkpoints.load(trained.best))
        return with_probabilities(model)


def fill(model: keras.Model, tensors: Mapping[str, Array]) -> None:
    """Puts a checkpoint's weights into a model."""
    for variable in model.variables:
        if not is_seed(variable):
            variable.assign(tensors[f"model.{variable.path}"])


def keras_file(model: keras.Model) -> bytes:
    """As `model.save`, without the time and the addresses in memory that it notes: equal models give equal bytes."""
    for variable in model.variables:
        if is_seed(variable):
            variable.assign(np.zeros(2, np.int64))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, KERAS_FILE)
        model.save(path)
        with zipfile.ZipFile(path) as archive:
            contents = {info.filename: archive.read(info) for info in archive.infolist()}
    about = parse_json(contents["metadata.json"])
    contents["metadata.json"] = json.dumps({"keras_version": about["keras_version"], "date_saved": "-"}).encode()
    contents["config.json"] = _renumbered(contents["config.json"].decode()).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in sorted(contents):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), contents[name])
    return out.getvalue()


def _renumbered(config: str) -> str:
    """Objects that layers share are told by a number each, which is where they were in memory:
    counted from 1 instead."""
    places: dict[str, int] = {}
    return re.sub(r'("shared_object_id": )(\d+)', lambda at: at[1] + str(places.setdefault(at[2], len(places) + 1)),
                  config)


def onnx_file(model: keras.Model) -> bytes:
    """Converted by Keras and tf2onnx. Takes images (B, H, W, C) as float32."""
    model(np.zeros((1, *model.input.shape[1:]), np.float32))  # Keras exports only what has been called
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, of what tf2onnx asks it for
        path = Path(folder, ONNX_FILE)
        model.export(path, format="onnx", verbose=False)
        return renamed(path.read_bytes())


def renamed(data: bytes) -> bytes:
    """An ONNX model with names in the order of its nodes: tf2onnx's count what it has converted before,
    and the passes it made."""
    import onnx

    model = onnx.load_from_string(data)
    graph = model.graph
    names = {value.name: value.name for value in (*graph.input, *graph.output)} | {"": ""}
    constants = {constant.name for constant in graph.initializer}
    for node in graph.node:
        for name in (*node.input, *node.output):
            names.setdefault(name, f"{'constant' if name in constants else node.op_type}_{len(names)}")
    for place, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{place}"
        for side in (node.input, node.output):
            side[:] = [names[name] for name in side]
        if any(attribute.HasField("g") for attribute in node.attribute):
            return data  # a loop, whose body has names of its own
    kept = {names[constant.name]: onnx.numpy_helper.to_array(constant) for constant in graph.initializer
            if constant.name in names}
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(onnx.numpy_helper.from_array(kept[name], name) for name in sorted(kept))
    graph.doc_string = ""
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "rows"
    return model.SerializeToString(deterministic=True)
