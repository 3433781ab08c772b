"""A trained module of yours as an ONNX file."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import torch

from jobs.common.training.job import TrainingResult
from jobs.common.training.trainable import Tensors
from jobs.common.vision.build_info import BuildInfo
from jobs.pytorch.model import new_model
from jobs.pytorch.onnx_export import onnx_file
from jobs.pytorch.own_module import fill, graph_or_none


def graph_of(trained: TrainingResult, weights: Tensors) -> bytes | None:
    """From pixels (B, H, W, C), of the training data's type, to probabilities (B, K).

    None, and a line on standard output, for a module that the exporter cannot write.
    """
    info = BuildInfo.of(trained.dataset, trained.config.model)
    model = new_model(trained.config, info)
    fill(model, weights)
    images = torch.zeros((2, *info.shape), dtype=getattr(torch, trained.dataset.details["dtype"]))
    return graph_or_none(trained.config.own, lambda: onnx_file(model, model, {"image": images}, ("rows",)))
