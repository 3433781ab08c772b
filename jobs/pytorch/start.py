"""What a PyTorch module begins with, and what of it is not trained: see jobs/common/start.py."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Mapping

import torch
from torch import nn

from jobs.common import start
from jobs.common.arrays import Array
from jobs.common.start_config import StartConfig


def begin(module: nn.Module, wanted: StartConfig, given: Mapping[str, Array]) -> None:
    """Puts another model's tensors into a module in place of its random ones. given: by name.
    Raises: ConfigError for those that do not fit."""
    own = {name: tuple(each.shape) for name, each in module.state_dict().items()}
    single = {name: array.reshape(()) for name, array in given.items() if own.get(name) == () and array.size == 1}
    given = {**given, **single}  # a file of weights has numbers alone as arrays of one
    names = start.taken(wanted, own, {name: array.shape for name, array in given.items()})
    module.load_state_dict({name: torch.from_numpy(given[name]) for name in names}, strict=False)


def freeze(module: nn.Module, wanted: StartConfig) -> list[nn.Module]:
    """Takes the parameters that `model.freeze` names out of training. Returns the parts that keep figures of the rows
    beside these, such as batch normalisation: they are to use them as they are, and so not to be in training mode.

    Raises: ConfigError for a name that none has, and where nothing is left to train.
    """
    tensors = module.state_dict(keep_vars=True)
    trained = [name for name, each in module.named_parameters() if each.requires_grad]
    names = start.frozen(wanted, trained, tensors)
    for name in names:
        tensors[name].requires_grad_(False)
    return [module.get_submodule(name.rpartition(".")[0]) for name, _ in module.named_buffers() if name in names]
