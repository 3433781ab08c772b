"""A PyTorch model as an ONNX file: float32, any number of rows, all in one file."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

OPSET = 18
OUTPUT = "probabilities"


class Answering(nn.Module):
    def __init__(self, computed: Callable[..., Tensor], model: nn.Module, answers: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self._computed, self._answers = model, computed, answers

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._answers(self._computed(*inputs).float())


def softmax(logits: Tensor) -> Tensor:
    """Probabilities (B, K)."""
    return torch.softmax(logits, 1)


def onnx_file(model: nn.Module, logits: Callable[..., Tensor], example: Mapping[str, Tensor],
              axes: Sequence[str], answers: Callable[[Tensor], Tensor] = softmax, output: str = OUTPUT) -> bytes:
    """The model from its inputs to what `answers` makes of its logits (B, K), by default probabilities.

    logits: computes with `model`, called with the example's tensors. axes: names of their first dimensions, which may
    have any size. By tracing, with the exporter that PyTorch keeps beside its newer one,
    which would need one more package (onnxscript).
    """
    named = {name: dict(enumerate(axes)) for name in example} | {output: {0: axes[0]}}
    with tempfile.TemporaryDirectory(prefix="trainyard-onnx-") as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that there is a newer one; and of Python values that are traced as constants
        path = Path(folder, "model.onnx")
        torch.onnx.export(Answering(logits, model, answers).eval(), tuple(example.values()), path, dynamo=False,
                          opset_version=OPSET,
                          input_names=list(example), output_names=[output], dynamic_axes=named)
        return path.read_bytes()
