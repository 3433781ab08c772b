"""The perceptron of an artifact as an ONNX file."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import torch

from jobs.common.artifact.artifact import Artifact
from jobs.mlp.model import load
from jobs.pytorch.onnx_export import onnx_file


def to_onnx(artifact: Artifact) -> bytes:
    """From pixels (B, H, W, C), of the training data's type, to probabilities (B, K)."""
    model = load(artifact).model
    images = torch.from_numpy(artifact.probe().inputs["image"])
    return onnx_file(model, model, {"image": images}, ("rows",))
