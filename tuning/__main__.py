"""`python -m tuning JOB [options]`: searches hyperparameters of a job; `python -m tuning JOB --help` lists the options.

JOB is mlp, cnn, pytorch, transformer, or the package of a job of yours, such as my_package.churn. What is searched is
in the job's own search_space.yaml, or in the file of --space.
"""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None, prog: str = "python -m tuning") -> int:
    """Carries out a command line. Returns the exit code; prints one message for an expected error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if given else 2
    from cluster.core.errors import TrainyardError  # only now, so that this text takes no time
    from jobs.common.config import answer_help
    from jobs.common.training.house import house_config
    from tuning.options import combined

    name, *flags = given
    if (config := house_config(name)) is not None:
        answer_help(combined(config), f"{prog} {name}", flags)
    from jobs.common.runs.console import fail
    from jobs.common.training.find_job import find_job
    from tuning.run import main as search  # after the help

    try:
        job = find_job(name)
    except TrainyardError as error:
        fail(str(error))
        return error.exit_code
    return search(job, flags)


if __name__ == "__main__":
    sys.exit(main())
