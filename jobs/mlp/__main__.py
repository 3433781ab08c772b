"""`python -m jobs.mlp [--config FILE.yaml] [--group.field VALUE …]`; `--help` lists the fields."""

import sys

from jobs.common.config import answer_help
from jobs.mlp.config import MlpConfig

if __name__ == "__main__":
    answer_help(MlpConfig, "python -m jobs.mlp")
    from jobs.common.runs.run import main
    from jobs.mlp.job import JOB  # after the help, which so takes half the time

    sys.exit(main(JOB))
