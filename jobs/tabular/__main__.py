"""`python -m jobs.tabular [--config FILE.yaml] [--group.field VALUE …]`; `--help` lists the fields."""

import sys

from jobs.common.config import answer_help
from jobs.tabular.config import TabularConfig

if __name__ == "__main__":
    answer_help(TabularConfig, "python -m jobs.tabular")
    from jobs.common.runs.run import main
    from jobs.tabular.job import JOB  # after the help, which so takes half the time

    sys.exit(main(JOB))
