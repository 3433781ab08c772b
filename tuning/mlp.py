"""`python -m tuning.mlp`: searches hyperparameters of the MLP job. `--help` lists the options."""

import sys

from jobs.mlp.data import JOB
from tuning.run import main
from tuning.space import Space, choice, log_uniform, uniform

SPACE = Space(
    choice("model.hidden", [64], [128], [256], [256, 256], [512, 512], [256, 256, 256]),
    uniform("model.dropout", 0.0, 0.5, mutable=True),
    log_uniform("optim.lr", 3e-4, 2e-2, mutable=True),
    log_uniform("optim.weight_decay", 1e-4, 0.3, mutable=True),
    uniform("optim.label_smoothing", 0.0, 0.2, mutable=True),
    choice("train.global_batch_size", 30, 60, 120),
    uniform("augment.shift", 0.0, 3.0, mutable=True),
    uniform("augment.rotate", 0.0, 20.0, mutable=True),
    uniform("augment.scale", 0.0, 0.2, mutable=True),
)

if __name__ == "__main__":
    sys.exit(main(JOB, SPACE))
