"""What the name of a job means to `submit`: a module, its first arguments, and a folder that goes to the cluster."""

from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

from cluster.core import shadows
from cluster.core.auth import expanded
from cluster.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a job's name means: a module, what comes before the job's flags, and a folder that goes to the cluster too.

    folder: None where all of it is installed, here and on the cluster.
    """

    module: str
    arguments: tuple[str, ...]
    folder: Path | None


def command_of(job: str, working_dir: str | None = None) -> Command:
    """job: `mlp`, a package of yours such as `my_package.churn`, a search of one of them: `tuning.mlp`; or a Python
    file of yours, which calls `ty.train`, and whose folder goes along.

    Without a working_dir the current folder goes along if it holds the job or Trainyard itself, else the repository
    that this runs from. Raises: ConfigError with the names that there are,
    or for a folder that would hide Trainyard's packages.
    """
    if job.endswith(".py"):
        return _file(job, working_dir)
    name = job.removeprefix("tuning.").removeprefix("jobs.")
    folder = _given(working_dir) if working_dir is not None else _folder_of(name)
    if folder is not None and (hidden := shadows.found_in(folder)):
        raise ConfigError(f"the job would not find Trainyard: {hidden}")
    own = sorted({path.parent.name for root in (folder, shadows.OURS) if root for path in root.glob("jobs/*/job.py")})
    if name not in own and not _has_job(name, folder):
        choices = ", ".join([*own, *(f"tuning.{each}" for each in own)])
        raise ConfigError(f"there is no job {job!r}: give one of {choices}, or a package of yours that has a job.py, "
                          "such as my_package.churn, in --working-dir or installed")
    if job.startswith("tuning."):
        return Command(module="tuning", arguments=(name,), folder=folder)
    return Command(module=f"jobs.{name}" if name in own else name, arguments=(), folder=folder)


def _file(job: str, working_dir: str | None) -> Command:
    file = expanded(job).resolve()
    folder = _given(working_dir) if working_dir is not None else file.parent
    if not file.is_file() or not file.is_relative_to(folder):
        raise ConfigError(f"there is no file {job} in {folder}: name a file, and a --working-dir that holds it")
    module = ".".join(file.relative_to(folder).with_suffix("").parts)
    if not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(f"{job}: workers import the file by its name: call it with letters, digits and _, such as "
                          "my_file.py")
    if hidden := shadows.found_in(folder):
        raise ConfigError(f"the job would not find Trainyard: {hidden}")
    return Command(module=module, arguments=(), folder=folder)


def _given(working_dir: str) -> Path:
    folder = expanded(working_dir).resolve()
    if not folder.is_dir():
        raise ConfigError(f"--working-dir {working_dir}: there is no such folder")
    return folder


def _folder_of(name: str) -> Path | None:
    here = Path.cwd()
    if (here / "jobs/common").is_dir() or here.joinpath(*name.split("."), "job.py").is_file():
        return here
    return shadows.OURS if (shadows.OURS / "pyproject.toml").is_file() else None


def _has_job(name: str, folder: Path | None) -> bool:
    """Whether a package is in a folder, or installed, with a job.py. Imports nothing."""
    top, *rest = name.split(".")
    if not all(part.isidentifier() for part in (top, *rest)):
        return False
    specs = (PathFinder.find_spec(top, [str(folder)]) if folder else None, find_spec(top))
    return any(Path(place, *rest, "job.py").is_file()
               for spec in specs if spec is not None for place in spec.submodule_search_locations or [])
