"""PyTorch's optimisers, without what nobody here needs; and a step that is taken only if it is finite."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from jobs.common.training.train_state import StepOutcome
from jobs.common.vision.config import OptimConfig


def build_optimizer(parameters: Iterable[Tensor], optim: OptimConfig) -> torch.optim.Optimizer:
    """AdamW or SGD, each in one kernel."""
    if optim.name == "adamw":
        return undecorated(torch.optim.AdamW)(parameters, lr=optim.lr, weight_decay=optim.weight_decay, fused=True)
    return undecorated(torch.optim.SGD)(parameters, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay,
                                        fused=True)


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


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def step_if_finite(optimizer: torch.optim.Optimizer, loss: float, clip_norm: float | None) -> StepOutcome:
    """Takes the step if loss and gradient are finite. All ranks decide alike: they see the same sums."""
    parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    # Where nothing is clipped a sum will do, at a third of the cost: with one value that is not finite it is not either.
    size = sum_of(gradients) if clip_norm is None else torch.nn.utils.get_total_norm(gradients)
    if not (math.isfinite(loss) and math.isfinite(size.item())):
        return "skipped"
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, size)
    optimizer.step()  # pyright: ignore[reportUnknownMemberType]
    return "taken"


def sum_of(tensors: list[Tensor]) -> Tensor:
    return functools.reduce(torch.add, [tensor.sum() for tensor in tensors])
