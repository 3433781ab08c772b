"""`python -m jobs.pytorch [--config FILE.yaml] [--group.field VALUE …]`; `--help` lists the fields."""

import sys

from jobs.common.config import answer_help
from jobs.pytorch.config import PytorchConfig

if __name__ == "__main__":
    answer_help(PytorchConfig, "python -m jobs.pytorch")
    from jobs.common.runs.run import main
    from jobs.pytorch.job import JOB  # after the help, which so takes half the time

    sys.exit(main(JOB))
