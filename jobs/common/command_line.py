"""Turns a recipe's values and a command line's flags into a config, and says which flag was meant."""

import contextlib
import dataclasses
import difflib
import io
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

from cluster.core.documents import DocumentError, read_yaml
from cluster.core.errors import ConfigError
from jobs.common.provenance import without_secrets

C = TypeVar("C")
T = TypeVar("T")
Overrides = Mapping[str, object]
RENAMED = {"optim.warmup_steps": "optim.warmup"}
"""What fields were called in earlier versions, and are called now. Both mean the same in flags, recipes, the records of
runs and searches, and search spaces."""


def current_names(values: Mapping[str, T], fields: Container[str]) -> dict[str, T]:
    """Values by the names that their fields have now. fields: those of the config, by which a job that has a field of
    its own under an old name keeps it."""
    return {current if (current := RENAMED.get(name, name)) in fields else name: value
            for name, value in values.items()}


def flatten(values: Overrides, prefix: str = "") -> dict[str, object]:
    """{"optim": {"lr": 1}} -> {"optim.lr": 1}."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(cast(Overrides, value), f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def split_recipe(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """The file of `--config FILE`, if there is one, and the other arguments.
    Raises: ConfigError for one without a file."""
    for i, argument in enumerate(arguments):
        if argument == "--config":
            if i + 1 == len(arguments):
                raise ConfigError("--config needs a file: --config FILE.yaml")
            return Path(arguments[i + 1]), arguments[:i] + arguments[i + 2 :]
        if argument.startswith("--config="):
            return Path(argument.removeprefix("--config=")), arguments[:i] + arguments[i + 1 :]
    return None, arguments


def recipe_flags(path: Path) -> list[str]:
    """The flags that a recipe's values stand for. Raises: ConfigError for a file that is none."""
    try:
        # BaseLoader keeps every scalar as it is written: PyYAML would read 1:4 as 64 and 3e-4 as a string.
        values = read_yaml(path, yaml.BaseLoader)
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror})") from error
    except DocumentError as error:
        raise ConfigError(f"--config {path}: is not valid YAML: {error}") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"--config {path}: must hold groups of fields, such as `optim:` with `lr: 0.1` below it")
    return flags_of("", cast(Overrides, values))


def flags_of(prefix: str, values: Overrides) -> list[str]:
    """{"optim": {"lr": 1, "nesterov": True}} -> ["--optim.lr", "1", "--optim.nesterov"]."""
    flags: list[str] = []
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", "-")
        if isinstance(value, Mapping):
            flags += flags_of(f"{name}.", cast(Overrides, value))
        elif isinstance(value, bool) or value in ("true", "false"):
            on = value is True or value == "true"
            head, _, tail = name.rpartition(".")
            flags.append(f"--{name}" if on else f"--{head}.no-{tail}")
        elif isinstance(value, list | tuple):
            flags += [f"--{name}", *(str(item) for item in cast(Sequence[object], value))]
        else:
            flags += [f"--{name}", "None" if value is None or value in ("null", "~", "") else str(value)]
    return flags


def parse_flags(config_type: type[C], flags: Sequence[str], prog: str) -> C:
    """Raises: ConfigError with what tyro says and the nearest known flag; SystemExit(0) after --help."""
    import tyro  # 0.1 s that a command without a config does without

    heard = io.StringIO()
    # comments beside fields are read for help alone: to look for them takes half the time of a parse
    told = () if {"-h", "--help"} & {*flags} else (tyro.conf.HelptextFromCommentsOff,)
    try:
        with contextlib.redirect_stderr(heard):
            return tyro.cli(config_type, args=_current_flags(config_type, flags), prog=prog, config=told)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_plain(heard.getvalue()) + _nearest(config_type, heard.getvalue())) from None


def _current_flags(config_type: type[Any], flags: Sequence[str]) -> list[str]:
    """The flags by the names that the config's fields have now."""
    given = [flag.partition("=") for flag in flags]
    old = {f"--{name.replace('_', '-')}": name for name in RENAMED}
    if not any(name.replace("_", "-") in old for name, _, _ in given):
        return list(flags)
    fields = flatten(dataclasses.asdict(config_type()))
    now = {flag: f"--{current}" for flag, name in old.items() for current in current_names({name: 0}, fields)}
    return [now.get(name.replace("_", "-"), name) + equals + value for name, equals, value in given]


def _nearest(config_type: type[Any], message: str) -> str:
    """The known flag nearest to an unknown one, where tyro found none near enough."""
    unknown = re.search(r"Unrecognized options: (--\S+?),?\s", message)
    if unknown is None or "Perhaps you meant" in message:
        return ""
    known = ["--" + name.replace("_", "-") for name in flatten(dataclasses.asdict(config_type()))]
    return f"\nthe nearest known flag is {difflib.get_close_matches(unknown[1], known, n=1, cutoff=0.0)[0]}"


def _plain(box: str) -> str:
    """tyro draws its message inside a box of lines: the text alone."""
    lines = (re.sub(r"^[╭│╰]|[╮│╯]$", "", line.strip()).strip(" ─") for line in box.splitlines())
    return "\n".join(line for line in lines if line) or "the command line was refused"


def refuse_secrets(values: Overrides) -> None:
    """Raises: ConfigError, without the value, for a URI with a password or key in it:
    a config is printed and stored."""
    for name, value in flatten(values).items():
        if isinstance(value, str) and "://" in value and without_secrets(value) != value:
            raise ConfigError(f"--{name.replace('_', '-')}: its URI holds a password or key, which logs, config.yaml "
                              "and the list of processes would show: leave it out, and set AWS_ACCESS_KEY_ID and "
                              "AWS_SECRET_ACCESS_KEY, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, in the "
                              "environment")
