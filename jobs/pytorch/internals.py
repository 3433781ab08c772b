"""What the jobs use of PyTorch that is private or undocumented. Read in PyTorch 2.13.0.

tests/unit/test_internals.py holds each symbol.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportPrivateUsage=false
# pyright: reportPrivateImportUsage=false

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


def has_compiler() -> bool:
    """Whether torch.compile finds a C++ compiler: by itself it asks after the first step,
    with a stack trace of pages."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def count_groups_from_zero() -> None:
    """Does what destroying a group does, for a group that was being made when a worker died.

    It has counted, and its number is where the members of the next one look for each other:
    they would wait for ever for a new worker, whose number is 0.
    """
    dist.distributed_c10d._world.group_count = 0


def undecorated(optimizer: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """The optimiser without its methods' decorators: they hide the methods from torch.compile,
    and show them to the profiler.

    For the first they import torch._dynamo, which takes more than a second, half of what a worker needs to start (only
    the model is ever compiled here); the second costs a twentieth of a small model's step.
    """
    def zero_grad(self: torch.optim.Optimizer, set_to_none: bool = True) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    methods = {name: inspect.unwrap(getattr(optimizer, name))
               for name in ("add_param_group", "state_dict", "load_state_dict")}
    step: Any = torch.no_grad()(inspect.unwrap(optimizer.step))
    step.hooked = True  # as Optimizer marks a step that has the profiler's decorator: it gets none
    return type(optimizer.__name__, (optimizer,), {**methods, "zero_grad": zero_grad, "step": step})
