"""`python -m jobs.cnn [--config FILE.yaml] [--group.field VALUE …]`; `--help` lists the fields."""

import sys

from jobs.cnn.job import JOB
from jobs.common.runs.run import main

if __name__ == "__main__":
    sys.exit(main(JOB))
