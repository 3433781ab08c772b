"""Optuna without Ray: the same trials in one process, one after the other. What `tuning_overhead` compares with.

    python -m tests.benchmarks.optuna_alone FOLDER THREADS TRIALS EPOCHS
"""

import json
import sys
import time
from pathlib import Path

from jobs.common.config import from_dict
from jobs.common.runs.trial import run_trial
from jobs.mlp.config import MlpConfig
from jobs.mlp.job import JOB
from tests.benchmarks.tuning_overhead import BASE, SPACE
from tuning.space import with_values


def main(folder: Path, threads: int, num_trials: int, epochs: int) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    base = from_dict(MlpConfig, BASE | {"train": {"epochs": epochs}})
    seconds: list[float] = []

    def objective(trial: optuna.Trial) -> float:
        began = time.perf_counter()
        config = with_values(base, SPACE.suggest(trial, {}) | {
            "run.storage": str(folder), "run.name": f"t{trial.number}", "run.cpus_per_worker": threads})
        rows: list[dict[str, float]] = []
        run_trial(JOB, config, rows.append)
        seconds.append(time.perf_counter() - began)
        return max(row["validation_accuracy"] for row in rows)

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=num_trials)
    (folder / "seconds.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
