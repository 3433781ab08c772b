"""A module for tables as it is trained, as it answers, as an ONNX file, and as it is loaded back from an artifact.

Shapes: B rows, N numbers, C categories, K outputs.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from jobs.common.arrays import Array
from jobs.common.artifact import artifact
from jobs.common.own_code import OwnModel
from jobs.common.tables.info import TableInfo
from jobs.common.tables.predictor import info_of
from jobs.common.training.trainable import Tensors
from jobs.pytorch.onnx_export import onnx_file
from jobs.pytorch.own_module import build, fill, fill_from, graph_or_none


class Answering(nn.Module):
    """From the inputs that have columns to what is answered: probabilities (B, K), or numbers in their own units."""

    def __init__(self, model: nn.Module, info: TableInfo) -> None:
        """model: a user's, which is called with numbers and categories whether they have columns or not."""
        super().__init__()
        self.model, self._info = model, info
        self.scale: Tensor
        self.offset: Tensor
        self.register_buffer("scale", _scales(info)[0].float(), persistent=False)
        self.register_buffer("offset", _scales(info)[1].float(), persistent=False)

    def forward(self, *inputs: Tensor) -> Tensor:
        rows = inputs[0].shape[0]
        numbers = inputs[0] if self._info.num_numbers else torch.zeros((rows, 0))
        categories = inputs[-1] if self._info.cardinalities else torch.zeros((rows, 0), dtype=torch.int64)
        outputs = self.model(numbers, categories).float()
        if self._info.class_names:
            return torch.softmax(outputs, 1)
        return in_order(outputs, self._info) * self.scale + self.offset


class LoadedModel:
    """The trained model as an application sees it."""

    def __init__(self, model: nn.Module, info: TableInfo) -> None:
        self.info, self._answering = info, Answering(model, info).eval()

    @torch.inference_mode()
    def predict(self, numbers: Array, categories: Array) -> npt.NDArray[np.float32]:
        """numbers: (B, N) and categories: (B, C), as `info.schema.encode` gives them. Returns probabilities (B, K), or
        numbers (B, targets * quantiles) in the targets' own units."""
        given = [torch.from_numpy(np.asarray(numbers, np.float32)), torch.from_numpy(np.asarray(categories, np.int64))]
        return self._answering(*(each for each in given if each.shape[1])).numpy()


def raw_numbers(outputs: Tensor, info: TableInfo) -> npt.NDArray[np.float64]:
    """Outputs (B, K) in the targets' own units."""
    scale, offset = _scales(info)
    return (in_order(outputs, info).double() * scale + offset).numpy()


def in_order(outputs: Tensor, info: TableInfo) -> Tensor:
    """Outputs (B, K) with the quantiles of each target rising, which only brings them nearer (Chernozhukov et al.
    2010)."""
    if len(info.quantiles) == 1:
        return outputs
    return outputs.reshape(-1, len(info.targets), len(info.quantiles)).sort(dim=2).values.flatten(1)


def _scales(info: TableInfo) -> tuple[Tensor, Tensor]:
    """Deviation and mean of each output, (K,) each; nothing for classes."""
    each = [(target.std, target.mean) for target in info.targets for _ in info.quantiles]
    return torch.tensor([std for std, _ in each], dtype=torch.float64), torch.tensor([mean for _, mean in each],
                                                                                    dtype=torch.float64)


def graph_of(own: OwnModel, info: TableInfo, weights: Tensors) -> bytes | None:
    """The model as an ONNX file.

    None, and a line on standard output, for a module that the exporter cannot write.
    """
    model = build(own, info)
    fill(model, weights)
    example = {"numbers": torch.zeros((2, info.num_numbers)),
               "categories": torch.zeros((2, len(info.cardinalities)), dtype=torch.int64)}
    example = {key: value for key, value in example.items() if value.shape[1]}
    answering = Answering(model, info)
    return graph_or_none(own, lambda: onnx_file(answering, answering, example, ("rows",), answers=lambda given: given,
                                                output="answers"))


def load(where: artifact.Where | artifact.Artifact, own: OwnModel, settings: object) -> LoadedModel:
    """The model of an artifact. own: what built it, code that is imported: load only what you trust.
    settings: the config's group `model`.

    Raises: ArtifactError, also if the weights are not of the module that the function builds now; ConfigError without
    it.
    """
    opened = artifact.as_artifact(where)
    info = info_of(opened, settings)
    model = build(own, info)
    fill_from(opened, model, own)
    return LoadedModel(model, info)
