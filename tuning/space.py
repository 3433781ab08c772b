"""What a search may change: fields of a job's config, each with a distribution, some only under a condition.

A job has them in its search_space.yaml, and a file for `--space` says the same:

    optim.lr: {log_uniform: [1e-4, 1e-1]}
    optim.name: {choice: [adamw, sgd]}
    optim.momentum: {uniform: [0.0, 0.95], when: {optim.name: sgd}}

A condition names a field that comes before, or one of the config that is not searched. `step` spaces values evenly.
`mutable: true` says that a model which is trained in part may go on with another value: a learning rate, not a width.
"""

import difflib
import itertools
import math
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import numpy as np
import yaml

from cluster.core.documents import DocumentError, JsonObject, parse_yaml, read_yaml
from cluster.core.errors import ConfigError
from jobs.common.command_line import current_names, flatten
from jobs.common.config import C, Config, from_dict, to_dict
from tuning.parameter import Kind, Parameter, Suggests, label

SPACE_FILE = "search_space.yaml"
"""In the folder of a job: the space that is searched where no other is given."""
Values = dict[str, object]
"""Dotted field → value, plain enough for JSON."""

_NOT_SEARCHED = {
    "run": "it decides how a trial is carried out, not what it computes",
    "train.epochs": "it is how far a trial goes at most: pass --train.epochs",
    "train.max_steps": "it is how far a trial goes at most: pass --train.max-steps",
} | dict.fromkeys(("task", "eval", "data.uri", "data.val_uri", "data.test_uri", "data.split_seed",
                   "data.max_train_rows"),
                  "trials that are judged on something else cannot be compared")


def _pinned(pin: str, value: str) -> object:
    try:
        return parse_yaml(value, _Loader)
    except DocumentError as error:
        raise ConfigError(f"--fix {pin}: the value is not valid YAML ({error})") from error


class Space:
    """Parameters in the order in which they are drawn."""

    def __init__(self, *parameters: Parameter) -> None:
        self.parameters = {parameter.name: parameter for parameter in parameters}
        if len(self.parameters) < len(parameters):
            raise ConfigError("space: a field is named twice")

    @staticmethod
    def read(path: Path) -> "Space":
        """Raises: ConfigError if the file is not a space."""
        try:
            found = read_yaml(path, _Loader)
        except OSError as error:
            raise ConfigError(f"space {path}: cannot be read ({error.strerror})") from error
        except DocumentError as error:
            raise ConfigError(f"space {path}: is not valid YAML: {error}") from error
        if not isinstance(found, dict):
            raise ConfigError(f"space {path}: must hold fields, such as `optim.lr: {{log_uniform: [1e-4, 1e-1]}}`")
        return Space.from_dict(cast(dict[str, object], found))

    @staticmethod
    def from_dict(values: Mapping[str, object]) -> "Space":
        return Space(*(_parameter(name, about) for name, about in values.items()))

    def to_dict(self) -> dict[str, object]:
        """As in a file."""
        return {name: parameter.to_dict() for name, parameter in self.parameters.items()}

    def renamed(self, fields: Container[str]) -> "Space":
        """The same space by the names that its fields have now. fields: those of the config."""
        return Space(*(replace(p, name=name, when=current_names(p.when, fields))
                       for name, p in current_names(self.parameters, fields).items()))

    def fixed(self, pins: Sequence[str]) -> tuple["Space", Values]:
        """The space without what `FIELD=VALUE` pins, and the pinned values.
        Raises: ConfigError for what is not in the space."""
        values: Values = {}
        for pin in pins:
            name, equals, value = pin.partition("=")
            if not equals:
                raise ConfigError(f"--fix {pin}: write FIELD=VALUE, such as optim.lr=3e-4")
            (name,) = current_names({name: value}, self.parameters)
            if name not in self.parameters:
                near = difflib.get_close_matches(name, self.parameters, n=1, cutoff=0.0)
                flag = f"--{name.replace('_', '-')} {value}"
                raise ConfigError(f"--fix {pin}: the space has no {name}: the nearest it has is "
                                  f"{near[0] if near else 'nothing'}; a field outside the space is set by a flag: "
                                  f"{flag}")
            values[name] = _pinned(pin, value)
        return Space(*(p for name, p in self.parameters.items() if name not in values)), values

    def check(self, base: Config) -> None:
        """Raises: ConfigError for a field that the job's config has not, a value that it refuses,
        or a space without a choice."""
        known = flatten(to_dict(base))
        earlier: set[str] = set()
        for parameter in self.parameters.values():
            self._check_name(parameter.name, known)
            earlier.add(parameter.name)
            for name in parameter.when:
                if name in self.parameters and name not in earlier - {parameter.name}:
                    raise ConfigError(f"space: {parameter.name}: its condition names {name}, which comes later: put "
                                      "that first")
                if name not in known:
                    raise ConfigError(f"space: {parameter.name}: its condition names {name}, which is no field: "
                                      f"{_nearest(name, known)}")
            for value in parameter.values:
                try:
                    with_values(base, dict(parameter.when) | {parameter.name: value})
                except ConfigError as error:
                    raise ConfigError(f"space: {parameter.name}: the job refuses {value!r}: {error}") from error
        if all(parameter.is_one_point for parameter in self.parameters.values()):
            raise ConfigError("space: it has one point, so there is nothing to search: give a field more values, or "
                              "train the job")

    def _check_name(self, name: str, known: Mapping[str, object]) -> None:
        if name not in known:
            raise ConfigError(f"space: {name}: the job has no such field: {_nearest(name, known)}")
        for prefix, why in _NOT_SEARCHED.items():
            if name == prefix or name.startswith(f"{prefix}."):
                raise ConfigError(f"space: {name}: {why}")

    def active(self, values: Values, base: Values) -> Iterator[Parameter]:
        """The parameters whose conditions hold, while `values` is filled. base: the config, flat."""
        for parameter in self.parameters.values():
            if all(label(values.get(name, base.get(name))) == label(wanted) for name, wanted in parameter.when.items()):
                yield parameter

    def suggest(self, trial: Suggests, base: Values) -> Values:
        """Values for the parameters that are active. base: the config, flat, for conditions on what is not searched."""
        values: Values = {}
        for parameter in self.active(values, base):
            values[parameter.name] = parameter.suggest(trial)
        return values

    def grid(self, base: Values) -> list[Values]:
        """Every combination once. Raises: ConfigError if there is no end of them."""
        points: list[Values] = [{}]
        for parameter in self.parameters.values():
            points = list(itertools.chain(*(self._extended(point, parameter, base) for point in points)))
        return points

    def _extended(self, point: Values, parameter: Parameter, base: Values) -> list[Values]:
        if parameter not in self.active(point, base):
            return [point]
        return [point | {parameter.name: value} for value in parameter.grid()]

    def perturb(self, values: Values, random: np.random.Generator, base: Values, resample: float = 0.25) -> Values:
        """Values near others, of the fields that are mutable: what a population explores.
        Every fourth is drawn anew instead."""
        near: Values = {}
        for parameter in self.active(near, base):
            if not parameter.mutable:
                near[parameter.name] = values[parameter.name]
            elif parameter.name not in values or random.random() < resample:
                near[parameter.name] = parameter.suggest(Draws(random))
            else:
                near[parameter.name] = parameter.perturb(values[parameter.name], random)
        return near


class Draws:
    """Draws from the distributions themselves."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None,
                      log: bool = False) -> float:
        if step is not None:
            return low + step * int(self._random.integers(0, 1 + math.floor((high - low) / step + 1e-9)))
        return math.exp(self._random.uniform(math.log(low), math.log(high))) if log else self._random.uniform(low, high)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        if log:
            return min(high, max(low, round(math.exp(self._random.uniform(math.log(low - 0.5), math.log(high + 0.5))))))
        return low + step * int(self._random.integers(0, 1 + (high - low) // step))

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        return choices[int(self._random.integers(len(choices)))]


def with_values(base: C, values: Mapping[str, object]) -> C:
    """The config with other values. Raises: ConfigError."""
    nested = to_dict(base)
    for name, value in values.items():
        group = nested
        *path, last = name.split(".")
        for part in path:
            group = group[part]
        group[last] = value
    return from_dict(type(base), nested)


def _parameter(name: str, about: object) -> Parameter:
    """One entry of a file."""
    kinds: tuple[Kind, ...] = get_args(Kind)
    example = "write for instance {log_uniform: [1e-4, 1e-1]} or {choice: [adamw, sgd]}"
    if not isinstance(about, dict):
        raise ConfigError(f"space: {name}: {about!r} is no distribution: {example}")
    entry = cast(JsonObject, about)
    kind = [each for each in kinds if each in entry]
    unknown = [key for key in entry if key not in (*kinds, "step", "when", "mutable")]
    if len(kind) != 1 or unknown:
        found = f"unknown {unknown[0]!r}" if unknown else f"{len(kind)} distributions"
        raise ConfigError(f"space: {name}: {found}: it takes one of {', '.join(kinds)}, and perhaps step, when, "
                          f"mutable; {example}")
    values, when = entry[kind[0]], entry.get("when", {})
    if not isinstance(values, list) or not isinstance(when, dict):
        raise ConfigError(f"space: {name}: {example}; a condition is written when: {{optim.name: sgd}}")
    return Parameter(name=name, kind=cast(Kind, kind[0]), values=tuple(cast(list[object], values)),
                     step=entry.get("step"),
                     when=cast(dict[str, object], when), mutable=bool(entry.get("mutable", False)))


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number, as people write it (PyYAML wants 1.0e-4)."""


_Loader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+.0123456789"))


def _nearest(name: str, known: Mapping[str, object]) -> str:
    return f"the nearest is {difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]}"
