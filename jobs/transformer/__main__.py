"""`python -m jobs.transformer [--config FILE.yaml] [--group.field VALUE …]`; `--help` lists the fields."""

import sys

from jobs.common.config import answer_help
from jobs.transformer.config import TransformerConfig

if __name__ == "__main__":
    answer_help(TransformerConfig, "python -m jobs.transformer")
    from jobs.common.runs.run import main
    from jobs.transformer.job import JOB  # after the help, which so takes half the time

    sys.exit(main(JOB))
