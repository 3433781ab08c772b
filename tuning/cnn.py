"""`python -m tuning.cnn`: searches hyperparameters of the CNN job. `--help` lists the options."""

import sys

from jobs.cnn.data import JOB
from tuning.run import main
from tuning.space import Space, choice, integer, log_uniform, uniform

SPACE = Space(
    choice("model.width", 8, 16, 24, 32),
    integer("model.convolutions", 1, 2),
    choice("model.dense", [], [64], [128]),
    uniform("model.dropout", 0.1, 0.6, mutable=True),
    log_uniform("optim.lr", 5e-4, 1e-2, mutable=True),
    log_uniform("optim.weight_decay", 1e-3, 0.3, mutable=True),
    uniform("optim.label_smoothing", 0.0, 0.2, mutable=True),
    choice("train.global_batch_size", 24, 36, 60),
    uniform("augment.shift", 0.0, 3.0, mutable=True),
    uniform("augment.rotate", 0.0, 20.0, mutable=True),
    uniform("augment.scale", 0.0, 0.2, mutable=True),
)

if __name__ == "__main__":
    sys.exit(main(JOB, SPACE))
