"""One field that a search may change, and the distribution of its values."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

import numpy as np

from cluster.core.errors import ConfigError

Kind = Literal["uniform", "log_uniform", "integer", "log_integer", "choice"]


class Suggests(Protocol):
    """What is asked of an Optuna trial."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None,
                      log: bool = False) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One field, and where its values come from."""

    name: str
    kind: Kind
    values: tuple[Any, ...]
    """The least and the greatest, or the choices."""
    step: float | None = None
    when: Mapping[str, object] = field(default_factory=dict[str, object])
    mutable: bool = False
    """Whether a model that is trained in part may go on with another value:
    what `--scheduler pbt` changes on the way."""

    def __post_init__(self) -> None:
        if self.kind == "choice":
            self._require(bool(self.values), "name what to choose from")
            return
        numbers = len(self.values) == 2 and all(_is_number(value) for value in self.values)
        self._require(numbers, "give the least and the greatest number")
        low, high = self.values
        self._require(low <= high, f"the least, {low}, is more than the greatest, {high}")
        self._require("log" not in self.kind or low > 0, "a logarithmic scale begins above 0")
        self._require("integer" not in self.kind or all(isinstance(value, int) for value in self.values),
                      "give whole numbers")
        self._require(self.step is None or ("log" not in self.kind and _is_number(self.step) and self.step > 0),
                      "a step is a number above 0, and not for a logarithmic scale")
        self._require(self.kind != "integer" or self.step is None or isinstance(self.step, int),
                      "its step is a whole number")
        if "uniform" in self.kind:
            # [0, 1] in a file: what is drawn is no whole number
            object.__setattr__(self, "values", (float(low), float(high)))

    def _require(self, condition: bool, remedy: str) -> None:
        if not condition:
            raise ConfigError(f"space: {self.name}: {self.kind} {list(self.values)}: {remedy}")

    @property
    def is_one_point(self) -> bool:
        return len({json.dumps(value) for value in self.values}) == 1

    def suggest(self, trial: Suggests) -> object:
        if self.kind == "choice":
            by_label = {label(value): value for value in self.values}
            return by_label[trial.suggest_categorical(self.name, list(by_label))]
        low, high = self.values
        if "integer" in self.kind:
            return trial.suggest_int(self.name, low, high, step=int(self.step or 1), log=self.kind == "log_integer")
        return trial.suggest_float(self.name, low, high, step=self.step, log=self.kind == "log_uniform")

    def grid(self) -> list[object]:
        """Every value. Raises: ConfigError if there is no end of them."""
        if self.kind == "choice":
            return list(self.values)
        low, high = self.values
        if self.kind == "integer":
            return list(range(low, high + 1, int(self.step or 1)))
        if self.step is None:
            raise ConfigError(f"space: {self.name}: a grid has no end of values for {self.kind}: use choice, or give a "
                              "step")
        return [low + k * self.step for k in range(1 + self._steps)]

    @property
    def _steps(self) -> int:
        """How many steps there are from the least to the greatest that is on one."""
        assert self.step is not None
        return math.floor((self.values[1] - self.values[0]) / self.step + 1e-9)

    def perturb(self, value: Any, random: np.random.Generator) -> object:
        """Near a value: a number a fifth up or down, a choice beside it (Jaderberg et al.
        2017); always within the bounds."""
        if self.kind == "choice":
            place = [label(each) for each in self.values].index(label(value)) + random.choice([-1, 1])
            return self.values[min(max(place, 0), len(self.values) - 1)]
        low, high = self.values
        near = min(max(value * random.choice([0.8, 1.2]), low), high)
        if self.step is not None:
            near = low + self.step * min(round((near - low) / self.step), self._steps)
        return round(near) if "integer" in self.kind else float(near)

    def position(self, value: Any) -> float:
        """Where a value lies between the ends, from 0 to 1: for a plot."""
        if self.kind == "choice":
            labels = [label(each) for each in self.values]
            return labels.index(label(value)) / max(1, len(labels) - 1)
        low, high = (math.log(v) if "log" in self.kind else v for v in self.values)
        at = math.log(value) if "log" in self.kind else value
        return (at - low) / (high - low) if high > low else 0.5

    def to_dict(self) -> dict[str, object]:
        """As in a file."""
        about: dict[str, object] = {self.kind: list(self.values)}
        more = {"step": self.step, "when": dict(self.when), "mutable": self.mutable}
        return about | {key: value for key, value in more.items() if value}


def label(value: object) -> str:
    """A value as text, the same for a tuple and a list."""
    return json.dumps(list(cast(Sequence[object], value)) if isinstance(value, tuple) else value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
