"""The config's options of preferences."""

from dataclasses import dataclass
from typing import Literal

from jobs.common.config import require


@dataclass(frozen=True, kw_only=True)
class PreferConfig:
    """How a model learns which of two answers is better."""

    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """`sigmoid`: Rafailov et al. 2023, eq. 7; `ipo`: Azar et al. 2023, eq. 17, of log-probabilities a token."""
    beta: float = 0.1
    """How strongly the model is held to the reference; of `ipo` what its authors call tau."""
    label_smoothing: float = 0.0
    """With `sigmoid`: how many of the pairs are taken to be the wrong way round."""

    def __post_init__(self) -> None:
        require(self.beta > 0, "prefer.beta", self.beta, "must be more than 0")
        require(0 <= self.label_smoothing < 0.5, "prefer.label_smoothing", self.label_smoothing,
                "must be at least 0 and less than 0.5")
        require(not self.label_smoothing or self.loss == "sigmoid", "prefer.label_smoothing", self.label_smoothing,
                "is for --prefer.loss sigmoid")
