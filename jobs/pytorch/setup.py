"""A worker's PyTorch: threads, device, determinism; and optimisers that start and step without what nobody here needs."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cluster.core.errors import ConfigError
from jobs.common.training.session import Session


def set_up_torch(session: Session, threads: int) -> torch.device:
    """Threads as given to this worker: another number of them sums in another order."""
    torch.set_num_threads(threads)
    device = torch.device(session.device)
    if device.type == "cuda":  # on a CPU all that is used here is deterministic, and this would import half of torch.compile
        if not torch.cuda.is_available():
            raise ConfigError("--run.gpus-per-worker 1: this PyTorch sees no GPU: install its CUDA build and a driver, or pass 0")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else matrix products are not deterministic
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.cuda.set_device(device)
    return device


def compiled(model: nn.Module) -> Any:
    """The model under torch.compile; its weights stay where they are. Raises: ConfigError where no compiler is installed."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ConfigError("--hardware.compile: torch.compile writes C++, and this worker's machine has no compiler: install g++ "
                          "there (apt-get install g++), or leave the option out") from None
    return torch.compile(model)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def undecorated(optimizer: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """The optimiser without its methods' decorators: they hide the methods from torch.compile, and show them to the profiler.

    For the first they import torch._dynamo, which takes more than a second, half of what a worker needs to start (only the model
    is ever compiled here); the second costs a twentieth of a small model's step.
    """
    def zero_grad(self: torch.optim.Optimizer, set_to_none: bool = True) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    methods = {name: inspect.unwrap(getattr(optimizer, name)) for name in ("add_param_group", "state_dict", "load_state_dict")}
    step: Any = torch.no_grad()(inspect.unwrap(optimizer.step))
    step.hooked = True  # as Optimizer marks a step that has the profiler's decorator: it gets none
    return type(optimizer.__name__, (optimizer,), {**methods, "zero_grad": zero_grad, "step": step})
