"""The config's group of the jobs whose whole model one of a framework's own optimisers lowers."""

import math
from dataclasses import dataclass
from typing import Literal

from jobs.common.config import require


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its schedule."""

    name: Literal["adamw", "sgd"] = "adamw"
    """The algorithm."""
    lr: float = 2e-3
    """Highest learning rate."""
    momentum: float = 0.0
    """Of SGD."""
    weight_decay: float = 0.05
    """Decoupled for AdamW, an L2 term for SGD."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """`cosine`: down to 0 at the last step."""
    warmup_steps: int = 50
    """Steps in which the rate rises from 0."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes."""
    clip_norm: float | None = 1.0
    """Largest norm of the gradient; None: no clipping."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr", self.lr, "must be more than 0")
        require(0 <= self.momentum < 1, "optim.momentum", self.momentum, "must be at least 0 and less than 1")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "must be 0 or more")
        require(self.warmup_steps >= 0, "optim.warmup_steps", self.warmup_steps, "must be 0 or more")
        require(0 <= self.label_smoothing < 1, "optim.label_smoothing", self.label_smoothing,
                "must be at least 0 and less than 1")
        require(self.clip_norm is None or self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "must be more than 0")

    def learning_rate(self, step: int, total_steps: int) -> float:
        """The rate of a step, counted from 0."""
        return learning_rate(self.lr, self.schedule, self.warmup_steps, step, total_steps)


def learning_rate(highest: float, schedule: str, warmup_steps: int, step: int, total_steps: int,
                  lowest: float = 0.0) -> float:
    """Linear warm-up, then `constant`, or down to `lowest` at the last step: `linear`,
    or half a `cosine` (Loshchilov & Hutter 2017, eq. 5)."""
    if step < warmup_steps:
        return highest * (step + 1) / warmup_steps
    if schedule == "constant":
        return highest
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    left = 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return lowest + (highest - lowest) * left
