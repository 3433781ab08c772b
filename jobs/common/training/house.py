"""The jobs of Trainyard itself, by name. Imports little, so that `--help` takes no time."""

import importlib
from importlib.resources import files

from jobs.common.config import Config

HOUSE = "jobs"
"""The package of Trainyard's own jobs."""


def house_names() -> list[str]:
    """The jobs of Trainyard itself."""
    return sorted(each.name for each in files(HOUSE).iterdir() if each.joinpath("job.py").is_file())


def package_of(name: str) -> str:
    """The package of a job that a person or an artifact names; it need not exist."""
    return f"{HOUSE}.{name}" if name in house_names() else name


def house_config(name: str) -> type[Config] | None:
    """The config of a job of Trainyard's own, without what its job.py imports, for `--help`; None for another job."""
    if name not in house_names():
        return None
    kinds = [kind for kind in vars(importlib.import_module(f"{HOUSE}.{name}.config")).values()
             if isinstance(kind, type) and issubclass(kind, Config)]
    (config,) = [kind for kind in kinds if not any(issubclass(other, kind) for other in kinds if other is not kind)]
    return config
