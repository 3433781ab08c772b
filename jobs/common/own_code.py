"""Code of a user's own that an option names as MODULE:NAME: how it is found, called, and how its errors are said."""

import importlib
import re
from collections.abc import Callable
from typing import Any

from cluster.core.errors import ConfigError
from jobs.common.config import require


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
