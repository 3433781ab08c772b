"""A PyTorch model as a program that PyTorch loads without the model's code (torch.export, `.pt2`)."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from jobs.common.arrays import Array
from jobs.pytorch.onnx_export import Answering, softmax


def write_program(path: Path, model: nn.Module, logits: Callable[[Tensor], Tensor], example: Array) -> None:
    """From rows like the example's, of any number, to probabilities (B, K). logits: computes with `model`."""
    rows = torch.from_numpy(np.ascontiguousarray(example))
    made = torch.export.export(Answering(logits, model, softmax).eval(), (rows,),
                               dynamic_shapes=(({0: torch.export.Dim("rows")},),))
    torch.export.save(made, path)


class Program:
    """Answers by such a file."""

    def __init__(self, path: Path) -> None:
        self._module = torch.export.load(path).module()

    @torch.inference_mode()
    def predict(self, rows: Array) -> Array:
        return self._module(torch.from_numpy(np.ascontiguousarray(rows))).numpy()
