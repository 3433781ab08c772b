"""PyTorch's optimisers, without what nobody here needs; and a step that is taken only if it is finite."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

import functools
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cluster.core.errors import ConfigError
from jobs.common.own_code import OwnModel, called
from jobs.common.training.optim_config import OptimConfig
from jobs.common.training.train_state import StepOutcome
from jobs.pytorch.internals import undecorated


def build_optimizer(parameters: Iterable[Tensor], optim: OptimConfig) -> torch.optim.Optimizer:
    """AdamW or SGD, each in one kernel."""
    if optim.name == "adamw":
        return undecorated(torch.optim.AdamW)(parameters, lr=optim.lr, weight_decay=optim.weight_decay, fused=True)
    return undecorated(torch.optim.SGD)(parameters, lr=optim.lr, momentum=optim.momentum,
                                        weight_decay=optim.weight_decay,
                                        fused=True)


def own_optimizer(own: OwnModel | None, model: nn.Module) -> torch.optim.Optimizer | None:
    """What a user's class gives as `optimizer(model)`; None where it has no such method. Raises: ConfigError for
    something else, and for an optimiser whose state a checkpoint would not hold."""
    if own is None or (method := own.method("optimizer")) is None:
        return None
    made = called(f"--model.build {own.name}: its optimizer", method, model)
    if not isinstance(made, torch.optim.Optimizer):
        raise ConfigError(f"--model.build {own.name}: its optimizer gave {type(made).__name__}: it must return a "
                          "torch.optim.Optimizer")
    if isinstance(made, torch.optim.LBFGS | torch.optim.SparseAdam):
        raise ConfigError(f"--model.build {own.name}: {type(made).__name__} needs more than a step's gradients: use "
                          "another optimiser")
    own_weights = {id(each) for each in model.parameters()}
    if any(id(each) not in own_weights for group in made.param_groups for each in group["params"]):
        raise ConfigError(f"--model.build {own.name}: its optimizer changes tensors that are no parameters of the "
                          "module, which no checkpoint holds: make them part of what `build` returns")
    for group in made.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return made


def check_kept(optimizer: torch.optim.Optimizer, groups: list[dict[str, object]]) -> None:
    """Raises: ConfigError for an optimiser with state that a checkpoint would not hold. groups: what `settings_of` gave
    before its first step."""
    odd = sorted({key for state in optimizer.state.values() for key, value in state.items()
                  if value is not None and not isinstance(value, Tensor)})
    if changed := [key for old, new in zip(groups, settings_of(optimizer), strict=True) for key in old
                   if old[key] != new[key]]:
        odd += changed
    if odd:
        raise ConfigError(f"the optimizer {type(optimizer).__name__} keeps {', '.join(odd)} in what is no tensor of "
                          "its state, which a checkpoint would lose: use another optimiser")


def settings_of(optimizer: torch.optim.Optimizer) -> list[dict[str, object]]:
    """Of each group what is neither parameters nor a learning rate."""
    return [{key: value for key, value in group.items() if key not in ("params", "lr", "initial_lr")}
            for group in optimizer.param_groups]


def initial_lr(optimizer: torch.optim.Optimizer) -> float:
    """What the first group began with."""
    first = optimizer.param_groups[0]
    return float(first.setdefault("initial_lr", first["lr"]))


def scale_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """lr: of the first group; the others keep their ratio to it."""
    factor = lr / initial_lr(optimizer)
    for group in optimizer.param_groups:
        group["lr"] = factor * float(group.setdefault("initial_lr", group["lr"]))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def step_if_finite(optimizer: torch.optim.Optimizer, loss: float, clip_norm: float | None) -> StepOutcome:
    """Takes the step if loss and gradient are finite. All ranks decide alike: they see the same sums."""
    parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    # Where nothing is clipped a sum will do, at a third of the cost: with one value that is not finite it is not
    # either.
    size = sum_of(gradients) if clip_norm is None else torch.nn.utils.get_total_norm(gradients)
    if not (math.isfinite(loss) and math.isfinite(size.item())):
        return "skipped"
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, size)
    optimizer.step()  # pyright: ignore[reportUnknownMemberType]
    return "taken"


def sum_of(tensors: list[Tensor]) -> Tensor:
    return functools.reduce(torch.add, [tensor.sum() for tensor in tensors])
