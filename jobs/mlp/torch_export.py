"""The perceptron of an artifact as a program that PyTorch loads without the code of this job (torch.export, `.pt2`)."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

from pathlib import Path

import numpy as np
import torch

from jobs.common.arrays import Array
from jobs.common.artifact.artifact import Artifact
from jobs.mlp.model import load
from jobs.pytorch.onnx_export import Answering, softmax


def write_program(artifact: Artifact, path: Path) -> None:
    """From pixels (B, H, W, C), of the training data's type, to probabilities (B, K)."""
    model, images = load(artifact).model, torch.from_numpy(artifact.probe().inputs["image"])
    made = torch.export.export(Answering(model, model, softmax).eval(), (images,),
                               dynamic_shapes=(({0: torch.export.Dim("rows")},),))
    torch.export.save(made, path)


class Program:
    """Answers by such a file."""

    def __init__(self, path: Path) -> None:
        self._module = torch.export.load(path).module()

    @torch.inference_mode()
    def predict(self, rows: Array) -> Array:
        """Probabilities of images."""
        return self._module(torch.from_numpy(np.ascontiguousarray(rows))).numpy()
