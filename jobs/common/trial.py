"""The Ray Tune binding of a job: one trial is a run on one worker, inside the trial's own process, with no worker group.

    def trainable(flags):  # what a Tuner is given
        run_trial(JOB, from_dict(MlpConfig, {"run": {"name": f"trial-{tune.get_context().get_trial_id()}"}, "optim": flags}))

The life cycle is the run's own: the trial's folder holds checkpoints like any other, so a trial that is started again goes
on where it was, and the job's command with the same config makes its artifact.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cluster.errors import ConfigError
from jobs.common.config import Config
from jobs.common.dataset import Dataset
from jobs.common.engine import Engine
from jobs.common.job import Job
from jobs.common.ledger import Ledger
from jobs.common.run import Run
from jobs.common.run_folder import RunFolder

Report = Callable[[dict[str, Any]], object]


def run_trial(job: Job, config: Config, *, report: Report | None = None) -> dict[str, Any]:
    """Prepares the data and trains, in this process; may be called outside the main thread.

    report: is given each evaluation (`step`, `epoch`, `validation_accuracy`, …) while training goes on; the trial stops after
    a checkpoint if it returns True, and without one if it raises. By default `ray.tune.report`, which raises SystemExit when
    the trial is to end. `run.engine` and `run.tracking_uri` are left out of account: the driver of the search keeps the record.
    Returns the evaluation that was best by `eval.metric`, the earliest of equals; {} if there was none.
    Raises: ConfigError if more than one worker is asked for; what a run raises (TrainyardError).
    """
    if config.run.workers != "1":
        raise ConfigError(f"--run.workers {config.run.workers}: a trial trains on one worker, in its own process: pass 1")
    trial = _Trial(job, replace(config, run=replace(config.run, engine="local", tracking_uri="none")), report or _to_tune)
    trial.carry_out()
    return trial.best()


def _to_tune(evaluation: dict[str, Any]) -> None:
    from ray import tune

    tune.report(evaluation)


class _Trial(Run):
    """A run that reports to a search where another one reports to the registry, and that ends with its last checkpoint."""

    def __init__(self, job: Job, config: Config, report: Report) -> None:
        super().__init__(job, config)
        self._report = report
        self._evaluations: list[dict[str, Any]] = []

    def best(self) -> dict[str, Any]:
        name, sign = {"accuracy": ("validation_accuracy", 1), "loss": ("validation_loss", -1)}[self.config.metric]
        return max(self._evaluations, key=lambda evaluation: sign * evaluation[name], default=dict[str, Any]())

    def log(self, reports: list[dict[str, Any]]) -> None:
        """Passes evaluations on, as `Tracking.log` does."""
        for evaluation in _evaluations(reports):
            if self._report(evaluation) is True:
                self._stop.set()

    def _heed_signals(self) -> None:
        """The process is not the trial's own: what a signal does is for its owner to say."""

    def _train_and_finish(self, folder: RunFolder, dataset: Dataset, engine: Engine, use_ray: bool) -> int:
        ledger = Ledger.open(folder.store)
        try:
            self._train(folder, dataset, engine, ledger, self, use_ray)
        finally:
            ledger.save(ended=True)
        self._evaluations = _evaluations(ledger.history)
        return 0


def _evaluations(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "kind"} for row in history if row["kind"] == "evaluation"]
