"""`python -m tuning JOB [options]`: searches hyperparameters of a job; `python -m tuning JOB --help` lists the options.

JOB is mlp, cnn, transformer, or the package of a job of yours, such as my_package.churn. What is searched is in the job's own
search_space.yaml, or in the file of --space.
"""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Carries out a command line. Returns the exit code; prints one message for an expected error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if given else 2
    if {"-h", "--help"} & {*given[1:]} and given[0].isidentifier():
        _answer_help(*given)
    from cluster.core.errors import TrainyardError  # only now, so that --help takes no time
    from jobs.common.runs.console import fail
    from jobs.common.training.find_job import find_job
    from tuning.run import main as search

    try:
        job = find_job(given[0])
    except TrainyardError as error:
        fail(str(error))
        return error.exit_code
    return search(job, given[1:])


def _answer_help(name: str, *flags: str) -> None:
    """Ends the process for a job of the house, by its config alone: all that its job.py imports takes as long again."""
    from importlib import import_module
    from importlib.util import find_spec

    from jobs.common.config import Config, answer_help
    from tuning.options import combined

    if find_spec(f"jobs.{name}") is None or find_spec(f"jobs.{name}.job") is None:
        return
    module = import_module(f"jobs.{name}.config")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Config)]
    (config,) = [kind for kind in kinds if not any(issubclass(other, kind) for other in kinds if other is not kind)]
    answer_help(combined(config), f"python -m tuning {name}", flags)


if __name__ == "__main__":
    sys.exit(main())
