"""The config's group of the jobs whose whole model one of a framework's own optimisers lowers."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from jobs.common.config import Config, OnResume, require


@dataclass(frozen=True, kw_only=True)
class ExtensionConfig:
    """How the schedule of a run goes on that is extended: by more epochs or steps, or `--run.extend-from`."""

    extend: Literal["constant", "cosine"] | None = None
    """Where a run is extended, from the first added step on: `constant` is the highest rate; `cosine` rises from 0 over
    `warmup` of the added steps, and falls to the end. By default a constant schedule stays so."""
    extended_at: int | None = None
    """The first added step, which the run finds out by itself."""

    on_resume: ClassVar[dict[str, OnResume]] = {"extend": "extends", "extended_at": "free"}

    def scheduled(self, highest: float, schedule: str, warmup: float, step: int, total_steps: int,
                  lowest: float = 0.0) -> float:
        """The rate of a step, as `learning_rate`; of the steps before it was extended as it was then."""
        begin = self.extended_at
        if begin is None or step < begin:
            return learning_rate(highest, schedule, warmup, step, begin or total_steps, lowest)
        if self.extend != "cosine":
            return highest
        return learning_rate(highest, "cosine", warmup, step - begin, total_steps - begin, lowest)


@dataclass(frozen=True, kw_only=True)
class OptimConfig(ExtensionConfig):
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
    warmup: float = 0.05
    """How long the rate rises from 0: below 1 a share of the run's steps, from 1 on a number of steps."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes."""
    clip_norm: float | None = 1.0
    """Largest norm of the gradient; None: no clipping."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr", self.lr, "must be more than 0")
        require(0 <= self.momentum < 1, "optim.momentum", self.momentum, "must be at least 0 and less than 1")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "must be 0 or more")
        require_warmup(self.warmup)
        require(0 <= self.label_smoothing < 1, "optim.label_smoothing", self.label_smoothing,
                "must be at least 0 and less than 1")
        require(self.clip_norm is None or self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "must be more than 0")

    def learning_rate(self, step: int, total_steps: int) -> float:
        """The rate of a step, counted from 0."""
        return self.scheduled(self.lr, self.schedule, self.warmup, step, total_steps)


def require_warmup(warmup: float) -> None:
    """Raises: ConfigError for what is no share and no number of steps."""
    require(warmup >= 0 and (warmup < 1 or warmup % 1 == 0), "optim.warmup", warmup,
            "must be a share of the run's steps, at least 0 and less than 1, or a whole number of steps")


def warmup_warning(config: Config, train_rows: int) -> str | None:
    """What there is to say of a warm-up that is a number of steps and takes half the run or more."""
    warmup = getattr(getattr(config, "optim", None), "warmup", 0.0)
    total_steps = config.train.total_steps(train_rows // config.train.global_batch_size)
    if warmup < 1 or 2 * warmup < total_steps:
        return None
    return (f"warning: the learning rate rises in the first {warmup:,.0f} steps, and the run has {total_steps:,}: for "
            "a share of the steps pass --optim.warmup 0.05")


def learning_rate(highest: float, schedule: str, warmup: float, step: int, total_steps: int,
                  lowest: float = 0.0) -> float:
    """Linear warm-up, then `constant`, or down to `lowest` at the last step: `linear`,
    or half a `cosine` (Loshchilov & Hutter 2017, eq. 5)."""
    warmup_steps = round(warmup * total_steps) if warmup < 1 else warmup
    if step < warmup_steps:
        return highest * (step + 1) / warmup_steps
    if schedule == "constant":
        return highest
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    left = 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return lowest + (highest - lowest) * left
