"""What every job has that keeps its whole model and optimiser on each worker: their tensors,
in a checkpoint and out of one."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from jobs.common.arrays import Array
from jobs.common.training.context import TrainContext
from jobs.common.training.trainable import Tensors
from jobs.pytorch.process_group import Group
from jobs.pytorch.weight_digest import digest_of


class TorchTrainable:
    """The part of a `Trainable` that is the same for every `nn.Module` with one of PyTorch's optimisers."""

    sharded = False

    def __init__(self, context: TrainContext, group: Group, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.context, self.group, self.model, self.optimizer = context, group, model, optimizer

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def total(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The sum over all workers. Raises: PeerLostError."""
        return self.group.total(torch.from_numpy(values)).numpy()

    def weight_digest(self) -> int:
        """A number that is the same on all workers that hold the same weights."""
        return digest_of(self.model.parameters())

    def state_dict(self, optimizer_steps: int) -> Tensors:
        """`model.<name>` and `optimizer.<index>.<key>`; views of the live tensors where they are on the CPU."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
        return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}

    def load_state_dict(self, parts: Iterator[Tensors], optimizer_steps: int) -> None:
        """Of the one part that there is."""
        tensors = next(parts)
        load_weights(self.model, tensors)
        state: dict[int, dict[str, Tensor]] = {}
        for name, array in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = torch.from_numpy(array)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})

    def load_weights(self, parts: Iterator[Tensors]) -> None:
        load_weights(self.model, next(parts))


def load_weights(model: nn.Module, tensors: Mapping[str, Array]) -> None:
    """Puts a checkpoint's weights into the model, wherever it is."""
    model.load_state_dict({name.removeprefix("model."): torch.from_numpy(array) for name, array in tensors.items()
                           if name.startswith("model.")})
