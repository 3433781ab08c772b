"""Code of a user's own that an option names as MODULE:NAME: how it is found, called, and how its errors are said.

What builds a model is a function, called as FUNCTION(info), or a class with a method `build(self, info)`, which may
have more: `loss(self, model, batch)`, `optimizer(self, model)`, `schedule(self, step, total_steps)`, and `metrics`, by
name a function (true, predicted) -> number and which way is better.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from cluster.core.documents import DocumentError, parse_json
from cluster.core.errors import ConfigError
from jobs.common.config import require
from jobs.common.declared_metrics import Metric


def load_object(name: str) -> Any:
    """The object that `module:name` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def require_function(field_name: str, name: str) -> None:
    """Raises: ConfigError for what is not `module:function`."""
    require(bool(re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name)), field_name, name, "use MODULE:FUNCTION")


def function_of_yours(option: str, name: str) -> Callable[..., Any]:
    """The function that `module:name` names. Raises: ConfigError, naming the option."""
    try:
        return load_object(name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{option} {name}: {error}; it must be MODULE:FUNCTION, importable where the job "
                          "runs") from error


@dataclass(frozen=True)
class OwnModel:
    """What `--model.build NAME` names."""

    name: str
    build: Callable[..., Any]
    holder: Any = None
    """The instance of a class; None for a function."""

    @staticmethod
    def named(name: str, settings: str | None = None) -> "OwnModel":
        """settings: JSON of the attributes that an instance has. Raises: ConfigError for what is not there, or none."""
        found: Any = function_of_yours("--model.build", name)
        if not (inspect.isclass(found) and callable(getattr(found, "build", None))):
            if settings is not None:
                raise ConfigError(f"--model.settings: {name} is no class with a method `build`: leave the option out")
            return OwnModel(name, found)
        try:
            holder: Any = called(f"--model.build {name}", found)
        except ConfigError:
            if settings is None:
                raise
            holder = object.__new__(found)  # its __init__ needs arguments: the attributes are all that it has
        for attribute, value in _attributes(settings).items():
            setattr(holder, attribute, value)
        return OwnModel(name, holder.build, holder)

    def method(self, name: str) -> Callable[..., Any] | None:
        """`loss`, `optimizer` or `schedule`, if the class has it."""
        return getattr(self.holder, name, None)

    @property
    def metric_functions(self) -> Mapping[str, Callable[..., Any]]:
        """By name: called with true values and predictions, as arrays."""
        return {name: function for name, (function, _) in self._declared.items()}

    @property
    def metrics(self) -> Sequence[Metric]:
        """Raises: ConfigError where they are not declared as the module says."""
        made: list[Metric] = []
        for name, (_, direction) in self._declared.items():
            if direction not in ("max", "min"):
                raise ConfigError(f"--model.build {self.name}: metric {name!r} has the direction {direction!r}: it "
                                  "must be 'max' or 'min'")
            made.append(Metric(name, direction, while_training=name))
        return made

    @property
    def _declared(self) -> Mapping[str, tuple[Callable[..., Any], Any]]:
        found: Any = getattr(self.holder, "metrics", {})
        if not isinstance(found, Mapping) or not all(map(_is_metric, cast(Mapping[str, object], found).values())):
            raise ConfigError(f"--model.build {self.name}: `metrics` must be a dictionary: by name a function "
                              "(true, predicted) and 'max' or 'min'")
        return cast(Mapping[str, tuple[Callable[..., Any], Any]], found)


def _is_metric(declared: Any) -> bool:
    parts = cast(tuple[object, ...], declared) if isinstance(declared, tuple) else ()
    return len(parts) == 2 and callable(parts[0])


def _attributes(settings: str | None) -> dict[str, Any]:
    try:
        found: object = parse_json(settings or "{}", object)
    except DocumentError as error:
        raise ConfigError(f"--model.settings {settings}: is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise ConfigError(f"--model.settings {settings}: must be a JSON object, such as '{{\"width\": 64}}'")
    return cast(dict[str, Any], found)


def called(option: str, function: Callable[..., Any], *given: object, hint: str = "") -> Any:
    """What a user's code gives. option: and the function's name. Raises: ConfigError with what it raises, and where."""
    try:
        return function(*given)
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f", in {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
        raise ConfigError(f"{option}: {type(error).__name__}: {' '.join(str(error).split())}{where}{hint}") from error
