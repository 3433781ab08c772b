"""A trained module of yours as an ONNX file."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import contextlib
import io

import torch

from jobs.common.training.job import TrainingResult
from jobs.common.training.trainable import Tensors
from jobs.common.vision.build_info import BuildInfo
from jobs.pytorch.model import new_model
from jobs.pytorch.onnx_export import onnx_file


def graph_of(trained: TrainingResult, weights: Tensors) -> bytes | None:
    """From pixels (B, H, W, C), of the training data's type, to probabilities (B, K).

    None, and a line on standard output, for a module that the exporter cannot write.
    """
    info = BuildInfo.of(trained.dataset, trained.config.model)
    model = new_model(trained.config, info)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    images = torch.zeros((2, *info.shape), dtype=getattr(torch, trained.dataset.details["dtype"]))
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # gets the whole graph, where there is something to say of it
            return onnx_file(model, model, {"image": images}, ("rows",))
    except Exception as error:  # noqa: BLE001  whatever the exporter meets in the user's module
        print(f"no endpoint can answer by this model: --model.build {trained.config.model.build} cannot be written as "
              f"ONNX: {' '.join(str(error).split())[:200]}", flush=True)
        return None
