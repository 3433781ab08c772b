"""A worker's PyTorch: threads, device, determinism, and a compiler."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cluster.core.errors import ConfigError
from jobs.common.training.context import TrainContext
from jobs.pytorch.internals import has_compiler


def set_up_torch(context: TrainContext, threads: int) -> torch.device:
    """Threads as given to this worker: another number of them sums in another order."""
    torch.set_num_threads(threads)
    device = torch.device(context.device)
    # on a CPU all that is used here is deterministic, and this would import half of torch.compile
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("--run.gpus-per-worker 1: this PyTorch sees no GPU: install its CUDA build and a driver, "
                              "or pass 0")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else matrix products are not deterministic
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.cuda.set_device(device)
    return device


def compiled(model: nn.Module) -> Callable[..., Tensor]:
    """The model under torch.compile; its weights stay where they are.
    Raises: ConfigError where no compiler is installed."""
    if not has_compiler():
        raise ConfigError("--hardware.compile: torch.compile writes C++, and this worker's machine has no compiler: "
                          "install g++ there (apt-get install g++), or leave the option out")
    return torch.compile(model)
