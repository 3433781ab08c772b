"""From a job's name to its package: `mlp` is jobs.mlp, and `my_package.churn` is that package.

Any package that Python can import, and that has a job.py, is a job. Trainyard's own go before others of the same name.
"""

import importlib
from importlib.resources import files
from pathlib import Path

from cluster.core.errors import ConfigError
from jobs.common.training.house import house_names, package_of
from jobs.common.training.job import Job


def find_job(name: str) -> Job:
    """Imports the job of a name that a person gives. Raises: ConfigError, naming the jobs that there are."""
    package = package_of(name)
    if not all(part.isidentifier() for part in package.split(".")):
        raise ConfigError(f"{name!r} is not a job: {_choices()}")
    try:
        return importlib.import_module(f"{package}.job").JOB
    except ModuleNotFoundError as error:
        if error.name is None or not f"{package}.job.".startswith(f"{error.name}."):
            raise  # what the job's own code imports
        raise ConfigError(f"there is no job {name!r}, since {error.name} is not there: {_choices()}") from error
    except AttributeError as error:
        raise ConfigError(f"{package}.job has no JOB: give it one, as jobs/mlp/job.py has") from error


def check_name(job: Job) -> None:
    """Raises: ConfigError for a package that is called like a job of Trainyard itself,
    which its artifacts would name."""
    if package_of(job.name) != job.package:
        raise ConfigError(f"the package {job.package} has the name of a job of Trainyard's own: call it otherwise")


def beside(job: Job, name: str) -> Path | None:
    """A file of a job's folder; None where the job has no such file."""
    found = files(job.package).joinpath(name)
    return Path(str(found)) if found.is_file() else None


def _choices() -> str:
    return (f"give one of {', '.join(house_names())}, or a package of yours that has a job.py, such as "
            "my_package.churn, in the folder that this is run in, or installed")
