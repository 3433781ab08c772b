"""`python -m jobs.mlp [--config FILE.yaml] [--group.field VALUE …]`; `--help` lists the fields."""

import sys

from jobs.common.runs.run import main
from jobs.mlp.job import JOB

if __name__ == "__main__":
    sys.exit(main(JOB))
