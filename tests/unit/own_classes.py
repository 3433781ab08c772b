"""Classes that a user might train from Python, good and bad, and calls of ty.train where none belongs."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jobs.common.tables.info import TableInfo
from jobs.common.vision.build_info import BuildInfo
from tests.unit import own_modules, own_tables


def worst_error(true: np.ndarray, predicted: np.ndarray) -> float:
    """No mean over rows: no worker could say it alone."""
    assert true.shape == predicted.shape == (len(true),)
    return float(np.abs(true - predicted).max())


class Rows:
    """All that a class may have, for tables."""

    metrics = {"worst_error": (worst_error, "min")}  # noqa: RUF012

    def __init__(self, rates: tuple[float, float] | list[float] = (0.004, 0.001)) -> None:
        self.rates = list(rates)

    def build(self, info: TableInfo) -> nn.Module:
        return own_tables.Normalised(info)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.huber_loss(model(batch["numbers"], batch["categories"]), batch["target"])

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        first, *others = model.parameters()
        groups: Any = [{"params": [first], "lr": self.rates[0]}, {"params": others, "lr": self.rates[1]}]
        return torch.optim.AdamW(groups)

    def schedule(self, step: int, total_steps: int) -> float:
        return 1 - step / (2 * total_steps)


class Steady(Rows):
    """No Adam: where a gradient is almost 0 it makes whole steps of rounding."""

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        first, *others = model.parameters()
        return torch.optim.SGD([{"params": [first], "lr": 0.02}, {"params": others, "lr": 0.01}], momentum=0.5)


class Images:
    """For images; its loss is of the whole model."""

    metrics = {"certainty": (lambda true, predicted: predicted.max(1).mean(), "max")}  # noqa: RUF012

    def build(self, info: BuildInfo) -> nn.Module:
        return own_modules.normalised(info)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return own_modules.focal(model(batch["image"]), batch["label"])


class NoOptimizer(Rows):
    def optimizer(self, model: nn.Module) -> Any:
        return list(model.parameters())


class Lbfgs(Rows):
    def optimizer(self, model: nn.Module) -> Any:
        return torch.optim.LBFGS(model.parameters())


class DetachedLoss(Rows):
    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return super().loss(model, batch).detach()


class _Counting(torch.optim.SGD):
    """Keeps a number of its own, which no checkpoint would hold."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["seen"] = group.get("seen", 0) + 1
            for each in group["params"]:
                self.state[each]["steps"] = self.state[each].get("steps", 0) + 1
        return super().step(closure)


class ForgetfulOptimizer(Rows):
    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return _Counting(model.parameters(), lr=0.01)


class ForeignParameters(Rows):
    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD([*model.parameters(), nn.Parameter(torch.zeros(1))], lr=0.01)


class _Drifting(nn.Module):
    """Has buffers that change whenever it is called: one in place, one that is another tensor each time."""

    def __init__(self, info: TableInfo) -> None:
        super().__init__()
        self.layer = nn.Linear(info.num_numbers, info.num_outputs)
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("center", torch.zeros(info.num_numbers))

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        self.seen += len(numbers)
        self.center = 0.9 * self.center + 0.1 * numbers.mean(0)
        return self.layer(numbers - self.center)


class Drifting(Rows):
    def build(self, info: TableInfo) -> nn.Module:
        return _Drifting(info)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.01)


class Infinite(Rows):
    metrics = {"nothing": (lambda true, predicted: float("nan"), "max")}  # noqa: RUF012


class NotDeclared(Rows):
    metrics = {"worst_error": worst_error}  # type: ignore[dict-item]  # noqa: RUF012


class WrongDirection(Rows):
    metrics = {"worst_error": (worst_error, "down")}  # noqa: RUF012


class NoNumber(Rows):
    metrics = {"pairs": (lambda true, predicted: "many", "min")}  # noqa: RUF012


class NeedsAnArgument(Rows):
    def __init__(self, needed: float) -> None:
        super().__init__()
