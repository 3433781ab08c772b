"""`python -m jobs.cnn [--config FILE.yaml] [--group.field VALUE …]`; `--help` lists the fields."""

import sys

from jobs.cnn.config import CnnConfig
from jobs.common.config import answer_help

if __name__ == "__main__":
    answer_help(CnnConfig, "python -m jobs.cnn")
    from jobs.cnn.job import JOB  # after the help, which so takes half the time
    from jobs.common.runs.run import main

    sys.exit(main(JOB))
