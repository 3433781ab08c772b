"""`python -m tuning.transformer`: searches hyperparameters of the Transformer job. `--help` lists the options.

The fields that matter for any model and both tasks; for a preset's dimensions (`model.layers`, `model.width`) give a --space of
your own.
"""

import sys

from jobs.transformer.data import JOB
from tuning.run import main
from tuning.space import Space, choice, log_integer, log_uniform, uniform

SPACE = Space(
    log_uniform("optim.lr", 1e-4, 5e-3, mutable=True),
    choice("optim.schedule", "linear", "cosine"),
    log_integer("optim.warmup_steps", 20, 400),
    choice("optim.beta2", 0.95, 0.98, 0.999),
    log_uniform("optim.weight_decay", 1e-3, 0.3, mutable=True),
    uniform("optim.label_smoothing", 0.0, 0.2, mutable=True),
    uniform("model.dropout", 0.0, 0.3, mutable=True),
    choice("train.global_batch_size", 16, 32, 64, 128),
)

if __name__ == "__main__":
    sys.exit(main(JOB, SPACE))
