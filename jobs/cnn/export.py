"""From the best checkpoint to what is handed over: a `.keras` file that is the same for the same weights, and an ONNX file."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false

import io
import json
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.cnn.framework import tf
from jobs.cnn.model import KERAS_FILE, is_seed, new_model, with_probabilities
from jobs.common.images import ImageFacts
from jobs.common.job import Trained

ONNX_FILE = "model.onnx"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def model_files(trained: Trained) -> dict[str, bytes]:
    """The artifact's model, from pixels to probabilities, in both formats; float32, whatever it was trained in."""
    model = best_model(trained)
    return {KERAS_FILE: keras_file(model), ONNX_FILE: onnx_file(model)}


def best_model(trained: Trained) -> Any:
    """The Keras model of the best checkpoint, with a softmax at its end."""
    with tf.device("CPU"):
        model = new_model(trained.config, ImageFacts.of(trained.dataset), len(trained.dataset.class_names))
        fill(model, trained.checkpoints.load(trained.best))
        return with_probabilities(model)


def fill(model: Any, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Puts a checkpoint's weights into a model."""
    for variable in model.variables:
        if not is_seed(variable):
            variable.assign(tensors[f"model.{variable.path}"])


def keras_file(model: Any) -> bytes:
    """As `model.save`, without the time at which it was saved: equal models give equal bytes."""
    for variable in model.variables:
        if is_seed(variable):
            variable.assign(np.zeros(2, np.int64))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, KERAS_FILE)
        model.save(path)
        with zipfile.ZipFile(path) as archive:
            contents = {info.filename: archive.read(info) for info in archive.infolist()}
    about = json.loads(contents["metadata.json"])
    contents["metadata.json"] = json.dumps({"keras_version": about["keras_version"], "date_saved": "-"}).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in sorted(contents):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), contents[name])
    return out.getvalue()


def onnx_file(model: Any) -> bytes:
    """Converted by Keras and tf2onnx. Takes images (B, H, W, C) as float32."""
    model(np.zeros((1, *model.input.shape[1:]), np.float32))  # Keras exports only what has been called
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, of what tf2onnx asks it for
        path = Path(folder, ONNX_FILE)
        model.export(path, format="onnx", verbose=False)
        return path.read_bytes()
