"""Whether what a search found on a quarter of the rows is better than the
Transformer's default preset on all of them."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.results import Figure, Outcome
from tests.benchmarks.tuning_presets import interval, train

TITLE = ("the Transformer's default preset against the best that a search found on a quarter of the rows: all rows, "
         "paired")


@dataclass(frozen=True, kw_only=True)
class Settings:
    seeds: int = 5
    flags: tuple[str, ...] = ()
    """Of both."""


QUICK = Settings(seeds=1, flags=("--data.max-train-rows", "200", "--train.epochs", "1"))
FOUND = ("--optim.lr", "0.00126124683378618", "--optim.schedule", "linear", "--optim.warmup", "41",
         "--optim.beta2", "0.999",
         "--optim.weight-decay", "0.010643426690114099", "--optim.label-smoothing", "0.03260858719715447",
         "--model.dropout", "0.21275751187312247", "--train.global-batch-size", "16")
"""The best of the 30 trials of tuning_presets."""
NOTES = (
    "Test accuracy of `python -m jobs.transformer` with no options but a seed, and with what the search of "
    "`tuning_presets` found, by turns. The difference is real where zero is not between the ends of its 95% interval "
    "(Student's t over the pairs).",
)
_FIRST_SEED = 200


def measure(settings: Settings, workspace: Path) -> Outcome:
    found, default = [], []
    for seed in range(_FIRST_SEED, _FIRST_SEED + settings.seeds):
        found.append(train("transformer", workspace / f"found-{seed}", seed, *FOUND, *settings.flags))
        default.append(train("transformer", workspace / f"default-{seed}", seed, *settings.flags))
        print(seed, found[-1], default[-1], flush=True)
    low, high = interval([100 * (a - b) for a, b in zip(found, default, strict=True)])
    return Outcome(figures=(Figure(name="default preset", value=statistics.mean(default)),
                            Figure(name="found by the search", value=statistics.mean(found)),
                            Figure(name="difference", value=(low + high) / 2, unit="points"),
                            Figure(name="its 95% interval, from", value=low, unit="points"),
                            Figure(name="its 95% interval, to", value=high, unit="points")),
                   samples={"found": found, "default": default}, notes=NOTES)
